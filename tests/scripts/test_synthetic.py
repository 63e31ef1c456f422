"""Synthetic models: exact shapes, llama.cpp's own tensor types, bounded memory, and they run."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from gguf import quants

import make_synthetic_gguf
from server.catalog.gguf import check, read_header
from server.llama.backend import LlamaBackend
from server.llama.loading import load_backend
from server.llama.params import LlamaParams
from server.llama.probe import probe
from synthetic import blocks, tensors
from synthetic.rounds import Rounds, follow, successors
from synthetic.shapes import SHAPES, Shape, find_shape
from synthetic.vocabulary import vocabulary
from synthetic.writer import write_shape
from tests.llama.driving import Driver, prompt_of

ROOT = Path(__file__).resolve().parents[2]
DENSE = Shape("qwen3", 24, 256, 4, 2, 256, head_size=64, n_vocab=2048)
MIXTURE = replace(DENSE, architecture="qwen3moe", experts=4, experts_used=2)
SMALL = {
    "qwen3": DENSE,
    "qwen3 tied": replace(DENSE, tied=True),
    "qwen3moe": replace(MIXTURE, expert_feed_forward=256),
    "qwen2": replace(DENSE, architecture="qwen2"),
    "phi3": replace(DENSE, architecture="phi3", kv_heads=4),
}


@pytest.mark.parametrize(
    ("make", "kind"),
    [(blocks.random_q4_k, tensors.Q4_K), (blocks.random_q6_k, tensors.Q6_K)],
)
def test_random_blocks_decode_to_the_deviation_asked_for(make, kind):
    made = make(np.random.default_rng(0), 400, 1 / math.sqrt(1024))
    weights = quants.dequantize(made, kind)
    assert weights.shape == (400, 256)
    assert np.isfinite(weights).all()
    assert weights.std() == pytest.approx(1 / 32, rel=0.02)
    assert abs(weights.mean()) < 1 / 32 / 20


@pytest.mark.parametrize(("n_vocab", "special"), [(151_936, 151_643), (32_064, 31_771)])
def test_vocabulary_is_of_the_models_size_and_its_merges_are_sound(n_vocab, special):
    texts, types, merges = vocabulary(n_vocab)
    assert len(texts) == len(set(texts)) == len(types) == n_vocab
    assert texts[special : special + 3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert texts[special + 14] == "<tool_call>"
    assert texts[special + 24 : special + 26] == ["<think>", "</think>"]
    known = set(texts)
    assert len(merges) == len(set(merges)) == special - 256
    for merge in merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        # As the publishers' pages give them: Qwen, unsloth (0.6B, 1.7B), bartowski (Phi-3).
        ("0.6b", 0.397),
        ("1.7b", 1.11),
        ("4b", 2.50),
        ("8b", 5.03),
        ("14b", 9.00),
        ("32b", 19.76),
        ("30b-a3b", 18.56),
        ("qwen2:7b", 4.68),
        ("qwen2.5-7b", 4.68),
        ("phi-3", 2.39),
    ],
)
def test_headers_are_sound_and_of_the_real_files_sizes(tmp_path, name, gigabytes):
    path = tmp_path / "model.gguf"
    make_synthetic_gguf.write(name, path, header_only=True)
    header = check(path)
    assert path.stat().st_size / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert path.stat().st_blocks * 512 < 16e6, "the weights are no hole"
    shape = find_shape(name)[1]
    assert header.integer("block_count") == shape.layers
    assert header.integer("expert_count") == shape.experts


def test_a_mixture_has_the_real_ones_dimensions(tmp_path):
    path = tmp_path / "model.gguf"
    make_synthetic_gguf.write("30b-a3b", path, header_only=True, layers=1)
    found = {tensor.name: tensor.dimensions for tensor in read_header(path).tensors}
    assert found["blk.0.ffn_gate_inp.weight"] == (2048, 128)
    assert found["blk.0.ffn_up_exps.weight"] == (2048, 768, 128)
    assert found["blk.0.ffn_down_exps.weight"] == (768, 2048, 128)
    assert found["blk.0.attn_k.weight"] == (2048, 512)
    assert "blk.0.ffn_up.weight" not in found


@pytest.mark.native
@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
def test_types_are_those_that_llama_cpps_quantizer_chooses(tmp_path, shape):
    synthetic, plain, quantized = (tmp_path / f"{n}.gguf" for n in ("synthetic", "plain", "q4"))
    write_shape(shape, "small", synthetic)
    dequantize(synthetic, plain)
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.nthread = 15, 1
    assert not llama_cpp.llama_model_quantize(str(plain).encode(), str(quantized).encode(), wanted)

    chosen = {tensor.name: tensor.type_name for tensor in read_header(quantized).tensors}
    ours = {tensor.name: tensor.type_name for tensor in read_header(synthetic).tensors}
    assert ours == chosen
    assert set(ours.values()) == {"F32", "Q4_K", "Q6_K"}


def dequantize(source: Path, target: Path) -> None:
    """Write the same model in float32: what a quantizer starts from."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.native
@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
def test_small_variants_load_and_generate(tmp_path, shape):
    path = tmp_path / "model.gguf"
    write_shape(replace(shape, layers=2), "small", path)
    probe(path)
    params = LlamaParams(path, slots=2, n_ctx=64, threads=1, warmup=False)
    backend = load_backend(params)(lambda _fraction: None)
    assert isinstance(backend, LlamaBackend)
    driver = Driver(backend)
    driver.start(0, prompt_of(1, 16, 1000))
    logits = driver.prefill_logits([prompt_of(1, 16, 1000)])
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 20
    driver.cancel(0)
    assert len(driver.alone(prompt_of(1, 16, 1000), 8)) == 8
    assert backend.info.architecture == shape.architecture
    backend.shutdown()


@pytest.mark.slow
def test_a_file_is_written_in_less_memory_than_it_is_long(tmp_path):
    """A child may take 128 MiB more than it had before writing 395 MB, of which one tensor is 128 MB."""
    code = """
        import re, resource, sys
        from pathlib import Path
        import make_synthetic_gguf
        from synthetic.vocabulary import vocabulary
        kept = vocabulary(), vocabulary()
        size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        limit = size + int(sys.argv[2]) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        make_synthetic_gguf.write("0.6b", Path(sys.argv[1]))
    """
    out = tmp_path / "model.gguf"

    def write(mebibytes: int) -> int:
        command = [sys.executable, "-c", textwrap.dedent(code), str(out), str(mebibytes)]
        environment = {"PYTHONPATH": f"{ROOT}/scripts:{ROOT}", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    assert write(8) == 1, "the limit limits nothing"
    assert write(128) == 0
    assert out.stat().st_size == check(out).data_offset + check(out).tensor_bytes
    assert out.stat().st_blocks * 512 > 390e6, "there is a hole where weights should be"
    out.unlink()


def test_the_largest_tensor_of_32b_comes_in_pieces():
    made = [tensor for tensor in tensors.tensors(SHAPES["qwen3-32b"]) if tensor.n_bytes > 5e8]
    assert [tensor.name for tensor in made] == ["output.weight"]
    pieces = blocks.chunks(made[0], np.random.default_rng(0))
    assert next(pieces).nbytes <= blocks.PIECE < made[0].n_bytes / 30


def test_the_same_seed_writes_the_same_file_and_another_one_another(tmp_path):
    shape = replace(DENSE, layers=1)
    made = []
    for number, seed in enumerate((1, 1, 2)):
        write_shape(shape, "small", tmp_path / str(number), seed=seed)
        made.append((tmp_path / str(number)).read_bytes())
    assert made[0] == made[1] != made[2]
    assert check(tmp_path / "0").tensor_bytes < len(made[0])
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["32b", "qwen3-32b", "qwen3:32b", "Qwen3-32B"])
def test_names_go_with_and_without_their_family(name):
    assert find_shape(name)[0] == "qwen3-32b"


def test_the_command_shows_progress_and_the_size(tmp_path, capsys):
    out = tmp_path / "folder" / "model.gguf"
    assert make_synthetic_gguf.main(["0.6b", str(out), "--layers", "1"]) == 0
    shown = capsys.readouterr()
    assert "of 0.14 GB (100%)" in shown.err
    assert shown.out == f"{out}: {out.stat().st_size:,} bytes\n"
    out.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["70b"], "'70b' is not known; there are qwen3-0.6b"), (["32b", "--layers", "0"], "layers")],
)
def test_a_wrong_command_line_says_what_there_is(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        make_synthetic_gguf.main([arguments[0], str(tmp_path / "out"), *arguments[1:]])
    assert message in capsys.readouterr().err


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch):
    usage = type("Usage", (), {"free": 3_000_000_000})
    monkeypatch.setattr("synthetic.writer.shutil.disk_usage", lambda _path: usage)
    assert make_synthetic_gguf.main(["32b", str(tmp_path / "out.gguf")]) == 1
    assert "3.0 GB left, and out.gguf takes 19.8 GB" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_of_somebodys_is_not_replaced(tmp_path, capsys):
    real, again = tmp_path / "real.gguf", tmp_path / "again.gguf"
    real.write_bytes(b"GGUF\x03 and much work")
    before = real.read_bytes()

    for out, said in ((real, "not a synthetic model"), (tmp_path, "is a folder")):
        assert make_synthetic_gguf.main(["0.6b", str(out), "--header-only"]) == 1
        assert said in capsys.readouterr().err
    for _ in range(2):
        assert make_synthetic_gguf.main(["0.6b", str(again), "--header-only"]) == 0

    assert real.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [again, real]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shape(DENSE, "small", tmp_path / "m.gguf", progress=interrupt)

    assert list(tmp_path.iterdir()) == []


def test_the_page_about_gpus_has_these_shapes_and_sizes(tmp_path):
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    listed = page.split("Shapes: ")[1].split(";")[0].replace(" (128 experts)", "").split(", ")
    assert {find_shape(name)[0] for name in listed} == set(SHAPES)
    rows = re.findall(r"^\| (\S+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for name, size in rows:
        make_synthetic_gguf.write(name, tmp_path / name, header_only=True)
        assert f"{(tmp_path / name).stat().st_size:,}" == size


@pytest.mark.native
@pytest.mark.parametrize("shape", [DENSE, replace(DENSE, tied=True), SMALL["qwen3moe"]], ids=str)
def test_text_goes_round_where_that_was_asked_for(tmp_path, shape):
    path = tmp_path / "m.gguf"
    write_shape(shape, "small", path, rounds=Rounds(shape, 12))
    backend = load_backend(LlamaParams(path, slots=1, n_ctx=256))(lambda _: None)
    assert isinstance(backend, LlamaBackend)
    after = successors(shape.n_vocab, 12).tolist()
    for start in (5, 300, 1000):
        driver = Driver(backend)
        said = driver.alone([7, start], 40)
        assert said == follow(after, start, 41)[1:]
        assert said[:12] == said[12:24]
    backend.shutdown()
