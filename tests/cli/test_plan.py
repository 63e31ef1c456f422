from __future__ import annotations

import json
from dataclasses import replace

import pytest

from server.cli import plan as command
from server.cli.parsing import Parser
from server.cli.pull_choice import planned_memory
from server.core.errors import ConfigError, ModelFileError
from server.ops.gpu import Card
from server.settings import Settings
from tests.catalog.hub_server import HubServer
from tests.catalog.plan_headers import QWEN3_32B, SMALL, write_header, write_split

GIB = 1 << 30
KEYS = {
    *("weights_gpu", "weights_cpu", "kv_per_token", "kv_gpu", "kv_cpu", "compute_gpu"),
    *("compute_cpu", "overhead", "total_gpu", "total_cpu", "fits"),
    *("n_gpu_layers", "slots", "n_ctx", "kv_cells", "kv_type"),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)

    def run_plan(*arguments: object) -> tuple[int, str]:
        parser = Parser(prog="onegpu", description="")
        command.add_parser(parser.add_subparsers(parser_class=Parser))
        options = parser.parse_args(["plan", *map(str, arguments)])
        status: int = options.run(options)
        return status, capsys.readouterr().out

    return run_plan


@pytest.fixture
def cards(monkeypatch):
    found: list[Card] = []
    monkeypatch.setattr("server.ops.gpu.read_cards", lambda: found)
    return found


@pytest.fixture
def big(tmp_path):
    return write_header(tmp_path / "Qwen3-32B-Q4_K_M.gguf", QWEN3_32B)


def test_a_file_is_planned_for_a_card_that_is_elsewhere(run, big):
    status, out = run(big, "--vram", "24GiB")
    assert status == 0
    assert "65 of" not in out
    assert f"onegpu serve {big} --slots 4 --n-ctx 8192 --kv-type q8_0 --n-gpu-layers all" in out


def test_json_has_the_agreed_keys_in_bytes(run, big):
    status, out = run(big, "--vram", "24GiB", "--slots", 2, "--kv-type", "f16", "--json")
    document = json.loads(out)
    assert status == 0
    assert document.keys() >= KEYS
    assert document["kv_per_token"] == 262144
    assert document["kv_gpu"] == document["kv_cells"] * 262144
    assert document["slots"] == 2
    assert document["fits"] is True
    parts = ("weights_gpu", "kv_gpu", "compute_gpu", "overhead")
    assert document["total_gpu"] == sum(document[part] for part in parts)
    assert len(document["layers"]) == 66
    assert document["slots_that_fit"]["f16"]["8192"] == 2


def test_what_does_not_fit_says_what_would_and_fails(run, big):
    wishes = ("--slots", 8, "--n-ctx", 32768, "--kv-type", "f16", "--n-gpu-layers", "all")
    status, out = run(big, "--vram", "24GiB", *wishes)
    assert status == 1
    assert "Does not fit" in out
    assert "What would fit:" in out
    status, out = run(big, "--vram", "24GiB", *wishes, "--json")
    document = json.loads(out)
    assert status == 1
    assert document["fits"] is False
    assert document["alternatives"]


def test_the_rows_of_a_graph_are_a_number(run, big):
    with pytest.raises(ConfigError, match="--n-ubatch must be a number"):
        run(big, "--n-ubatch", "auto")


def test_the_card_that_is_here_is_read(run, big, cards):
    cards.append(Card(0, "NVIDIA GeForce RTX 3090", 24 * GIB, 23 * GIB, (8, 6), "550"))
    _, out = run(big)
    assert "NVIDIA GeForce RTX 3090: 24.00 GiB, 23.00 GiB free; 0.50 GiB stay free" in out


def test_of_several_cards_the_one_that_would_serve_is_planned_for(run, big, cards, monkeypatch):
    for at, name, total in ((0, "Small card", 8), (1, "Large card", 24)):
        free = (total - 1) * GIB
        cards.append(Card(at, name, total * GIB, free, (8, 6), "550", f"0000:{at:02x}:00.0"))
    order = ["0000:01:00.0", "0000:00:00.0"]  # the fastest first
    monkeypatch.setattr("server.llama.main_card.llama_bus_ids", lambda: order)
    assert "Large card: 24.00 GiB" in run(big)[1]
    settings = Settings.model_validate({"model": {"main_gpu": 0}})
    assert planned_memory(settings).gpu_name == "Large card"
    order.reverse()
    assert "Small card: 8.00 GiB" in run(big)[1]
    assert planned_memory(settings).gpu_total == 8 * GIB


def test_without_a_card_system_memory_counts(run, tmp_path, cards):
    path = write_header(tmp_path / "small.gguf", SMALL)
    status, out = run(path, "--ram", "8GiB")
    assert status == 0
    assert "No GPU" in out
    assert "7.50 GiB available" in out
    assert "layers on GPU" not in out


def test_the_card_can_be_left_out(run, tmp_path, cards):
    cards.append(Card(0, "A card", 24 * GIB, 23 * GIB, (8, 6), "550"))
    _, out = run(write_header(tmp_path / "small.gguf", SMALL), "--cpu")
    assert "A card" not in out


def test_every_layer_has_its_row(run, big):
    _, out = run(big, "--vram", "24GiB", "--all-layers")
    title, rest = out.split("layers on GPU", 1)
    rows = rest.split("\n\n")[0].splitlines()[1:]
    assert title
    assert [row.split()[0] for row in rows] == [*map(str, range(65)), "all"]


def test_split_files_are_planned_as_one(run, tmp_path):
    paths = write_split(tmp_path, SMALL, 3)
    status, out = run(paths[0], "--vram", "4GiB")
    assert status == 0
    assert "in 3 files" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--slots", "many"), "--slots must be auto or a number, not 'many'"),
        (("--vram", "24 apples"), "memory.vram: must be a size such as"),
        (("--n-ctx", "100000"), "40960 tokens that the model was trained for"),
        (("--kv-type", "int4"), "kv_type must be auto or one of"),
    ],
)
def test_wrong_wishes_are_told(run, big, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(big, *arguments)


def test_rope_scaling_in_the_settings_allows_a_longer_context(run, big, tmp_path):
    config = tmp_path / "onegpu.yaml"
    rope = "{type: yarn, freq_scale: 0.25, orig_ctx: 40960}"
    config.write_text(f"model:\n  rope_scaling: {rope}\n")
    status, _ = run(big, "--config", config, "--vram", "80GiB", "--n-ctx", "100000")
    assert status == 0


def test_a_missing_file_and_a_file_of_another_kind_are_told(run, tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        run(tmp_path / "nothing.gguf")
    other = tmp_path / "model.gguf"
    other.write_bytes(b"\x10\0\0\0\0\0\0\0" + b'{"__metadata__":{}}')
    with pytest.raises(ModelFileError, match="safetensors"):
        run(other)


def test_a_file_on_the_hub_is_planned_from_its_header(run, tmp_path):
    spec = replace(SMALL, layers=200)
    path = write_header(tmp_path / "m-Q4_K_M.gguf", spec)
    data = path.read_bytes()
    path.unlink()
    with HubServer() as hub:
        hub.add("owner/repo", {"m-Q4_K_M.gguf": data})
        status, out = run("hf:owner/repo:Q4_K_M", "--endpoint", hub.endpoint, "--vram", "4GiB")
        assert hub.bytes_of("m-Q4_K_M.gguf") < len(data) // 2
    assert status == 0
    assert "onegpu serve hf:owner/repo:Q4_K_M --slots" in out
    assert not list(tmp_path.rglob("*.gguf"))


def test_without_a_quantization_the_largest_that_fits_is_planned(run, tmp_path):
    files = {}
    for quant, layers in {"Q8_0": 90, "Q4_K_M": 20}.items():
        path = write_header(
            tmp_path / f"m-{quant}.gguf", replace(SMALL, embedding=1024, layers=layers)
        )
        files[path.name] = path.read_bytes()
        path.unlink()
    with HubServer() as hub:
        hub.add("owner/repo", files)
        status, out = run(
            "hf:owner/repo",
            "--endpoint",
            hub.endpoint,
            "--vram",
            "1150MiB",
            "--n-gpu-layers",
            "all",
        )
    assert status == 0
    assert "hf:owner/repo:Q4_K_M" in out


def test_a_draft_model_is_planned_beside_it(run, big, tmp_path):
    small = write_header(tmp_path / "small.gguf", replace(SMALL, vocabulary=151936))
    status, out = run(big, "--draft", small, "--vram", "24GiB")
    assert status == 0
    assert "Drafts by a test's model: qwen3, 2 layers" in out
    assert "draft model: KV, 32768 cells of q8_0" in out
    assert f"onegpu serve {big} --draft {small} --slots 4" in out
    wishes = ("--vram", "24GiB", "--slots", 2, "--n-ctx", 4096, "--kv-type", "f16", "--json")
    alone, both = (
        json.loads(run(big, *wishes, *more)[1]) for more in ((), ("--draft", str(small)))
    )
    assert alone["draft"] is None
    cuda = 512 << 20
    assert both["total_gpu"] == alone["total_gpu"] + both["draft"]["total_gpu"] - cuda
    assert both["total_cpu"] == alone["total_cpu"] + both["draft"]["total_cpu"]


def test_a_draft_model_that_cannot_draft_or_hardly_pays_is_told(run, big, tmp_path, monkeypatch):
    small = write_header(tmp_path / "small.gguf", SMALL)
    with pytest.raises(ConfigError, match="its vocabulary has 300 tokens, not 151,936"):
        run(big, "--draft", small)
    with pytest.raises(ConfigError, match=r"--draft must be left out with engine.n_ubatch: 1"):
        run(small, "--draft", small, "--n-ubatch", 1)
    monkeypatch.setenv("ONEGPU_ENGINE__SPECULATION", "off")
    with pytest.raises(ConfigError, match=r"--draft must be left out with engine.speculation: off"):
        run(small, "--draft", small)
