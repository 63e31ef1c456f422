"""LoRA adapters end to end: as good as merged weights, refused when they do not fit, never mixed up."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from server.core.errors import ModelFileError
from server.core.events import Delta, Event, Finished
from server.engine.loop import EngineLoop
from server.llama.adapter import (
    adapter_bytes,
    check_adapter,
    detach_adapter,
    set_adapter,
)
from server.llama.backend import LlamaBackend
from server.llama.loading import load_backend
from server.llama.params import LlamaParams
from server.llama.probe import probe
from tests.adapters import AdapterSpec, lora_matrices, write_adapter, write_merged
from tests.factories import FakeClock, make_limits, make_request
from tests.llama.driving import GREEDY, Driver, prompt_of
from tests.models import ModelSpec, truncate_file, vocabulary

pytestmark = pytest.mark.native

BASE = ModelSpec()
PROMPT = prompt_of(1, 48)
ADAPTER = AdapterSpec()
SCRIPTED = ModelSpec(script=(b"Hello", b" there", b",", b" you"))
REWIRED = AdapterSpec(rewired=((b"Hello", b" you"),))
OTHER = AdapterSpec(seed=200, rank=8, alpha=16.0, targets=("attn_k", "attn_output", "ffn_gate"))


@pytest.fixture
def adapter(tmp_path):
    def make(spec: AdapterSpec = ADAPTER, base: ModelSpec = BASE) -> Path:
        return write_adapter(tmp_path / "adapter.gguf", spec, base)

    return make


def logits(driver: Driver) -> np.ndarray:
    """Of the last token of the prompt, computed in an empty slot."""
    driver.start(0, PROMPT)
    row = driver.prefill_logits([PROMPT])
    driver.cancel(0)
    return row


def driver_of(path: Path, **params: object) -> Driver:
    defaults: dict[str, object] = {"slots": 1, "n_ctx": 128, "threads": 1, "warmup": False}
    backend = load_backend(LlamaParams(path, **(defaults | params)))(lambda _fraction: None)
    assert isinstance(backend, LlamaBackend)
    return Driver(backend)


@pytest.mark.parametrize("spec", [ADAPTER, OTHER], ids=["with embeddings", "inner weights"])
@pytest.mark.parametrize("scale", [1.0, 0.25, -1.0])
def test_an_adapter_does_what_merging_it_into_the_weights_does(
    make_driver, adapter, tmp_path, spec, scale
):
    merged = driver_of(write_merged(tmp_path / "merged.gguf", spec, BASE, scale))
    adapted = make_driver(adapter=adapter(spec), adapter_scale=scale)
    base = make_driver()

    wanted, got, plain = logits(merged), logits(adapted), logits(base)

    # Both sums are of float32; the adapted one adds in another order.
    assert np.abs(got - wanted).max() < 0.01 * plain.std()
    assert np.abs(got - plain).max() > plain.std() / 4
    merged.backend.shutdown()


def test_an_adapted_script_is_said_as_the_merged_one(make_driver, tmp_path):
    """Where no choice is close, the text is the same to the last token."""
    path = write_adapter(tmp_path / "adapter.gguf", REWIRED, SCRIPTED)
    merged = driver_of(write_merged(tmp_path / "merged.gguf", REWIRED, SCRIPTED))
    vocab = vocabulary(SCRIPTED)
    start = [vocab.id_of(b"\n")]

    def said(driver: Driver) -> bytes:
        tokens = driver.alone(start, 5)
        return driver.backend.tokenizer.decode(tokens[: tokens.index(vocab.id_of(b"<|im_end|>"))])

    assert said(make_driver(SCRIPTED)) == b"Hello there, you"
    assert said(make_driver(SCRIPTED, adapter=path)) == said(merged) == b"Hello you"
    merged.backend.shutdown()


def test_scale_0_is_the_base_model(make_driver, adapter):
    off = make_driver(adapter=adapter(), adapter_scale=0.0)
    assert (logits(off) == logits(make_driver())).all()


def test_every_row_of_a_batch_and_every_slot_is_adapted(make_driver, adapter):
    adapted = make_driver(adapter=adapter(), warmup=True)
    prompts = [prompt_of(seed, 20) for seed in range(4)]
    alone = [adapted.alone(prompt, 6) for prompt in prompts]
    together = [adapted.start(slot, prompt) for slot, prompt in enumerate(prompts)]
    adapted.run(6)
    assert [sequence.said for sequence in together] == alone


def test_an_adapter_can_be_taken_off_and_another_set(make_driver, adapter, tmp_path):
    driver = make_driver()
    library, loaded = driver.backend._library, driver.backend._loaded
    plain = logits(driver)
    first = library.adapter_lora_init(loaded.model, str(adapter()).encode())
    second = write_adapter(tmp_path / "other.gguf", OTHER, BASE)
    other = library.adapter_lora_init(loaded.model, str(second).encode())
    assert first
    assert other

    set_adapter(library, loaded.context, first, 1.0)
    adapted = logits(driver)
    set_adapter(library, loaded.context, other, 1.0)
    replaced = logits(driver)
    detach_adapter(library, loaded.context, other)
    restored = logits(driver)

    assert (restored == plain).all()
    assert len({row.tobytes() for row in (plain, adapted, replaced)}) == 3
    # The first one is left to llama.cpp, which frees it with the model.


WRONG = {
    "a whole model": ({"general_type": "model", "tokenizer": True}, "FROM .* or model.path"),
    "a projector": ({"general_type": "mmproj"}, "general.type is 'mmproj'"),
    "a control vector": ({"adapter_type": "control_vector"}, "only 'lora' can be applied"),
    "activated": ({"activated": True}, "activated LoRA"),
    "another architecture": ({"architecture": "llama"}, "made for the architecture 'llama'"),
    "half a pair": ({"only_a": True}, "a matrix of .* is missing"),
    "ranks that differ": ({"other_rank": True}, "rank 4 and 3"),
    "no change": ({"targets": ()}, "it changes nothing"),
    "alpha is no number": ({"alpha": float("nan")}, "adapter.lora.alpha is nan"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_adapter_for_this_model_is_refused_by_its_header(
    models, adapter, changes, message
):
    path = adapter(AdapterSpec(**changes))
    with pytest.raises(ModelFileError, match=message):
        check_adapter(path, models.path())
    params = LlamaParams(models.path(), n_ctx=64, adapter=path)
    with pytest.raises(ModelFileError, match=message):
        load_backend(params)(lambda _fraction: None)


def test_the_model_itself_and_files_that_are_no_gguf_are_refused_too(models, tmp_path):
    with pytest.raises(ModelFileError, match=r"whole model.*FROM"):
        check_adapter(models.path(), models.path())
    text = tmp_path / "adapter.gguf"
    text.write_text("no adapter", encoding="utf-8")
    for wrong in (text, tmp_path / "missing.gguf"):
        with pytest.raises(ModelFileError):
            check_adapter(wrong, models.path())


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (ModelSpec(feed_forward=512), re.escape("blk.0.ffn_down.weight is (256, 128)")),
        (ModelSpec(layers=3), re.escape("changes blk.2.attn_q.weight, which")),
        (ModelSpec(extra_pieces=(b" extra",)), "token_embd.weight is"),
    ],
)
def test_an_adapter_of_another_size_is_refused(models, adapter, base, message):
    path = adapter(ADAPTER, base)
    with pytest.raises(ModelFileError, match=message):
        check_adapter(path, models.path())


def test_a_truncated_adapter_is_refused(models, adapter, tmp_path):
    short = truncate_file(adapter(), tmp_path / "short.gguf", missing=100)
    with pytest.raises(ModelFileError, match=r"truncated: .* bytes"):
        check_adapter(short, models.path())


def test_norms_that_llama_cpp_leaves_out_are_told(models, adapter, caplog):
    check_adapter(adapter(AdapterSpec(norms=True)), models.path())
    assert "1 norm tensors (blk.0.attn_norm.weight" in caplog.text


def test_a_child_process_tries_the_adapter_on_the_model(models, adapter, tmp_path, monkeypatch):
    probe(models.path(), adapter())
    monkeypatch.setattr("server.llama.probe.check_adapter", lambda *_: None)
    wrong = write_adapter(tmp_path / "wrong.gguf", ADAPTER, ModelSpec(feed_forward=512))
    with pytest.raises(ModelFileError, match=r"with the adapter .*incorrect shape"):
        probe(models.path(), wrong)


def test_the_fingerprint_tells_adapters_and_scales_apart(make_driver, adapter, tmp_path):
    first = shutil.copy(adapter(), tmp_path / "first.gguf")
    second = write_adapter(tmp_path / "second.gguf", OTHER, BASE)
    changes = [{}, {"adapter": first}, {"adapter": second}, {"adapter": first, "adapter_scale": 2}]
    prints = [make_driver(**change).backend.info.fingerprint for change in changes]
    assert len(set(prints)) == 4
    assert make_driver(adapter=adapter()).backend.info.fingerprint == prints[1]


class Engine:
    """An engine loop over a real context, stepped by hand."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.events: list[Event] = []
        self.loop = EngineLoop(
            lambda _progress: driver.backend,
            make_limits(slots=4, n_ctx=128),
            FakeClock(),
            lambda events: self.events.extend(event for _, event in events),
            lambda _state: None,
        )
        self.loop.load()

    def ask(self, prompt: list[int]) -> tuple[list[int], int]:
        """Return the answer's tokens, and how many of the prompt came from the cache."""
        self.events.clear()
        self.loop.submit(make_request(prompt, 8, sampling=GREEDY, ignore_eos=True))
        while self.loop.step():
            pass
        (end,) = [event for event in self.events if isinstance(event, Finished)]
        deltas = [event for event in self.events if isinstance(event, Delta)]
        said = [token for delta in deltas for token in delta.token_ids]
        return said, end.usage.cached_tokens


def test_cached_prefixes_never_cross_adapters(make_driver, adapter, tmp_path):
    """One prompt through three hosts in turn: each answers as a fresh one would, from its own cells."""
    second = write_adapter(tmp_path / "second.gguf", OTHER, BASE)
    changes = [{}, {"adapter": adapter()}, {"adapter": second}]
    fresh = [Engine(make_driver(**change)).ask(PROMPT)[0] for change in changes]
    assert len({tuple(said) for said in fresh}) == 3

    hosts = [Engine(make_driver(**change)) for change in changes]
    first = [host.ask(PROMPT) for host in hosts]
    again = [host.ask(PROMPT) for host in hosts]

    assert [said for said, _ in first] == fresh
    assert [cached for _, cached in first] == [0, 0, 0]
    assert all(cached >= 32 for _, cached in again)
    contexts = {host.driver.backend._context for host in hosts}
    assert len(contexts) == 3


def test_the_matrices_of_the_factory_are_what_is_written(adapter):
    pairs = lora_matrices(ADAPTER, BASE)
    assert len(pairs) == 2 + 3 * BASE.layers
    assert pairs["token_embd.weight"][1].shape == (BASE.embedding, ADAPTER.rank)
    size = sum(a.nbytes + b.nbytes for a, b in pairs.values())
    assert adapter_bytes(adapter()) == size
