"""Parameters, loading, probing, unloading."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import llama_cpp
import pytest

from server.core.errors import ConfigError, ModelFileError
from server.llama import native
from server.llama.loading import load_backend
from server.llama.native_log import NativeLog
from server.llama.params import DraftParams, LlamaParams
from server.llama.probe import probe
from tests.llama.driving import prompt_of
from tests.models import ModelSpec, truncate_file, vocabulary

pytestmark = pytest.mark.native


DRAFT = DraftParams(Path("small.gguf"))


def ignore(_fraction: float) -> None:
    pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 0}, "Slots must be 1 to 256"),
        ({"slots": 257}, "Slots must be 1 to 256"),
        ({"n_ctx": 0}, "N_ctx must be"),
        ({"kv_cells": 100}, "at least one full context"),
        ({"n_batch": 2, "n_ubatch": 1}, "every running request needs a row"),
        ({"n_ubatch": 0}, "N_ubatch must be at least 1"),
        ({"n_batch": 64, "n_ubatch": 65}, "must not be larger than n_batch"),
        ({"kv_type": "q9_9"}, "must be one of f32, f16"),
        ({"kv_type": "q8_0", "flash_attention": "off"}, "needs flash attention"),
        ({"kv_type_v": "q4_0", "flash_attention": "off"}, "needs flash attention"),
        ({"layout": "heap"}, "auto, unified or split"),
        ({"layout": "split", "kv_cells": 5000}, "leave kv_cells out"),
        ({"n_ubatch": 1, "kv_cells": 5000}, "deterministic"),
        ({"rope_scaling": "wide"}, "must be one of auto, none"),
        ({"rope_freq_base": -1.0}, "positive"),
        ({"n_gpu_layers": "some"}, "auto, all or a number"),
        ({"n_gpu_layers": -1}, "auto, all or a number"),
        ({"main_gpu": -1}, "device number"),
        ({"threads": 0}, "Threads must be 1 to 512"),
        ({"draft": DRAFT}, "A draft model needs draft_rows"),
        ({"draft": DRAFT, "draft_rows": 8, "n_ubatch": 1}, "row by row"),
    ],
)
def test_impossible_parameters_are_refused_before_loading(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        LlamaParams(Path("any.gguf"), **changes)


@pytest.mark.parametrize(
    ("changes", "cells", "native_cells", "rows"),
    [
        ({}, 16384, 16384, 512),
        ({"kv_cells": 5000}, 5000, 5000, 512),
        ({"n_ctx": 16}, 64, 64, 64),
        ({"layout": "split", "n_ctx": 300}, 1200, 2048, 512),
    ],
)
def test_cells_and_rows(changes, cells, native_cells, rows):
    params = LlamaParams(Path("any.gguf"), **changes)
    assert params.total_cells == cells
    assert params.native_n_ctx == native_cells
    assert params.effective_n_batch == rows


def test_llama_cpp_takes_the_sizes_as_computed(make_driver):
    for changes in ({"n_ctx": 16}, {"layout": "split", "n_ctx": 300}, {"kv_cells": 777}):
        backend = make_driver(**changes).backend
        params = LlamaParams(Path("any.gguf"), **({"slots": 4, "n_ctx": 256} | changes))
        assert backend.n_batch == params.effective_n_batch
        assert backend._library.n_seq_max(backend._context) == 4
        n_ctx = backend._library.n_ctx(backend._context)
        assert params.native_n_ctx <= n_ctx < params.native_n_ctx + 256


def test_progress_rises_to_one_and_its_exception_stops_the_load(models):
    seen: list[float] = []
    load_backend(LlamaParams(models.path(), warmup=False))(seen.append).shutdown()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    def stop(_fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_backend(LlamaParams(models.path()))(stop)


def test_facts_about_the_model(make_driver, models):
    info = make_driver().backend.info
    assert info.architecture == "qwen3"
    assert info.description.startswith(f"qwen3 {info.n_params / 1e6:.3g}M ")  # not "?B"
    assert info.n_vocab == len(vocabulary(ModelSpec()).texts)
    assert info.n_ctx_train == 32768
    assert info.chat_template is not None
    assert "<|im_start|>" in info.chat_template
    assert info.metadata["general.name"] == "onegpu test model"
    assert info.created == int(models.path().stat().st_mtime)
    assert info.partial_removal


def test_fingerprint_tells_files_and_kv_types_apart(make_driver):
    prints = {
        make_driver(ModelSpec(seed=seed), kv_type=kv_type).backend.info.fingerprint
        for seed in (0, 1)
        for kv_type in ("f16", "q8_0")
    }
    assert len(prints) == 4
    assert all(re.fullmatch("fp_[0-9a-f]{10}", fingerprint) for fingerprint in prints)
    assert make_driver().backend.info.fingerprint in prints


def test_unloading_gives_memory_back(models):
    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def cycle() -> None:
        params = LlamaParams(models.path(), n_ctx=4096, threads=1)
        backend = load_backend(params)(ignore)
        backend.shutdown()
        backend.shutdown()

    cycle()
    cycle()
    before = resident()
    for _ in range(10):
        cycle()
    # One leaked context alone would be 16 MiB of cells.
    assert resident() - before < 16 * 1024


def test_the_file_is_unmapped_after_shutdown_and_after_a_failure(models):
    path = models.path(head_size=24)

    def mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text()

    backend = load_backend(LlamaParams(path, threads=1))(ignore)
    assert mapped()
    backend.shutdown()
    assert not mapped()
    with pytest.raises(ConfigError):
        load_backend(LlamaParams(path, kv_type="q8_0"))(ignore)
    assert not mapped()


SOUND = [ModelSpec(), ModelSpec(script=(b"Hi",), template=None)]


@pytest.mark.parametrize("spec", SOUND, ids=["random", "scripted"])
def test_probe_passes_sound_files(models, spec):
    probe(models.path(spec))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"declared_layers": 100_000}, "LLAMA_MAX_LAYERS"),
        ({"declared_layers": 3}, "blk.2.attn_norm.weight"),
        ({"duplicate_token": True}, "token_to_id"),
        ({"kv_heads": 3}, "ggml_can_mul_mat"),
        ({"architecture": "clip"}, "CLIP cannot be used as main model"),
        ({"architecture": "bert"}, "bert.attention"),
        ({"architecture": "nosuch"}, "unknown model architecture"),
        ({"tokenizer": False}, "tokenizer.ggml.model"),
    ],
)
def test_probe_refuses_and_says_why_while_this_process_lives(models, changes, message):
    with pytest.raises(ModelFileError, match="cannot be served") as caught:
        probe(models.path(**changes))
    assert message in caught.value.message
    assert "/vendor/" not in caught.value.message


def test_probe_refuses_files_that_are_no_gguf(models, tmp_path):
    short = truncate_file(models.path(), tmp_path / "short.gguf", missing=1000)
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(b"no model at all")
    for path in (short, noise, tmp_path / "missing.gguf"):
        with pytest.raises(ModelFileError):
            probe(path)


def test_loading_a_bad_file_is_a_model_file_error(models, tmp_path):
    short = truncate_file(models.path(), tmp_path / "short.gguf", missing=1000)
    with pytest.raises(ModelFileError, match="not within the file bounds"):
        load_backend(LlamaParams(short))(ignore)
    with pytest.raises(ModelFileError, match="No such file"):
        load_backend(LlamaParams(tmp_path / "missing.gguf"))(ignore)


def test_a_context_that_cannot_be_made_is_a_config_error(models):
    path = models.path(head_size=24)
    with pytest.raises(ConfigError, match="does not divide"):
        load_backend(LlamaParams(path, kv_type="q8_0"))(ignore)


def test_another_release_of_the_bindings_is_refused(monkeypatch):
    monkeypatch.setattr(llama_cpp, "__version__", "0.4.0")
    with pytest.raises(ConfigError, match=r"0\.4\.0 is installed.*make install"):
        native._check_version()


def test_another_signature_is_refused():
    wrong = native._Signature(None, ())
    with pytest.raises(ConfigError, match="llama_decode has other arguments"):
        native._bind("decode", wrong, None)  # type: ignore[arg-type]


def test_log_joins_pieces_keeps_errors_and_never_raises(caplog):
    log = NativeLog(keep=3)
    with caplog.at_level(logging.DEBUG, "onegpu.llama_cpp"):
        log._on_log(4, b"llama_load: error loading model: no ", None)
        log._on_log(5, b"memory\nsecond", None)
        log._on_log(5, b"\n....\n", None)
        log._on_log(99, b"\xff\n", None)
        log._on_log(4, None, None)
    assert [record.getMessage() for record in caplog.records] == [
        "llama_load: error loading model: no memory",
        "second",
        "\ufffd",
    ]
    assert log.reason() == "no memory"
    log.clear()
    assert log.reason() == "no reason given"


def test_a_warm_up_that_fails_is_no_server(make_driver):
    backend = make_driver().backend
    real = backend._library

    class Failing:
        def __getattr__(self, name):
            return getattr(real, name)

        def decode(self, *_):
            return -3

    backend._library = Failing()
    with pytest.raises(ConfigError, match="code -3"):
        backend.warm_up()
    backend._library = real


def test_warm_up_leaves_no_cells(make_driver):
    driver = make_driver(warmup=True)
    memory = driver.backend._memory
    assert driver.backend._library.memory_seq_pos_max(memory, 0) == -1
    assert len(driver.alone(prompt_of(1, 8), 3)) == 3
