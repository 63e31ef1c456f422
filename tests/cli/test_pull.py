"""`onegpu pull`, `list`, `show` and `rm`, with a hub on loopback."""

import hashlib
import io
import json
import re
import sys
from pathlib import Path

import pytest

from server.catalog.catalogue_models import builtin_catalogue
from server.cli.main import main
from server.cli.pull_progress import StreamProgress, duration
from tests.adapters import AdapterSpec, write_adapter
from tests.catalog.conftest import gguf
from tests.catalog.hub_server import HubServer
from tests.fakes import FakeClock
from tests.models import ModelSpec

QWEN = "Qwen/Qwen3-0.6B-GGUF"
FILE = "Qwen3-0.6B-Q8_0.gguf"
WEIGHTS = gguf()
DEMO = Path(__file__).resolve().parent.parent.parent / "models" / "demo.gguf"
VARIABLES = (
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OLLAMA_MODELS",
)


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add(QWEN, {FILE: WEIGHTS, "README.md": b"#"})
        yield server


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch) -> None:
    """A machine where nobody ever downloaded anything."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def onegpu(hub, capsys):
    """Runs the command; returns status, standard output and standard error."""

    def run(*argv: str):
        try:
            status = main(argv)
        except SystemExit as stop:
            status = int(str(stop.code))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_pull_prints_the_path_and_tells_the_rest_on_the_side(hub, onegpu) -> None:
    status, out, err = onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)

    assert (status, out) == (0, f"models/{QWEN}/{FILE}\n")
    assert err.splitlines()[0] == f"{FILE}: {len(WEIGHTS)} B"
    assert f"verified SHA-256 {hashlib.sha256(WEIGHTS).hexdigest()[:12]}" in err


def test_endpoint_token_and_folder_come_from_settings_too(hub, onegpu, monkeypatch) -> None:
    hub.private[QWEN] = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    config = Path("c.yaml")
    config.write_text(f"models_dir: weights\nhub: {{endpoint: '{hub.endpoint}'}}\n", "utf-8")

    status, out, _ = onegpu("pull", "qwen3:0.6b-q8_0", "--config", "c.yaml")

    assert (status, out) == (0, f"weights/{QWEN}/{FILE}\n")


def test_a_token_comes_from_a_file(hub, onegpu) -> None:
    hub.private[QWEN] = "hf_secret"
    Path("token").write_text("hf_secret\n", "utf-8")
    argv = ["pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint, "--token-file"]

    assert onegpu(*argv, "token")[0] == 0
    status, _, err = onegpu(*argv, "none")
    assert (status, "--token-file none cannot be read" in err) == (2, True)


def test_without_a_quantization_the_planner_chooses(hub, onegpu) -> None:
    demo = DEMO.read_bytes()
    hub.add(
        "o/m-GGUF", {"m-Q8_0.gguf": demo + bytes(32), "m-Q4_K_M.gguf": demo, "m-F16.gguf": demo}
    )
    argv = ["pull", "hf:o/m-GGUF", "--endpoint", hub.endpoint, "--vram"]

    status, _, err = onegpu(*argv, "600MiB")
    assert (status, "onegpu pull hf:o/m-GGUF:Q4_K_M" in err) == (1, True)
    assert hub.gets("m-Q4_K_M.gguf")[-1].range is not None

    status, out, err = onegpu(*argv, "24GiB")
    assert (status, out) == (0, "models/o/m-GGUF/m-Q8_0.gguf\n")
    assert err.startswith("Q8_0 (4.08 MB) is the largest that fits the GPU, with 4 × 4096 tokens")


def test_what_the_planner_cannot_read_is_chosen_by_size(hub, onegpu) -> None:
    hub.add("o/odd-GGUF", {"m-Q8_0.gguf": b"no GGUF at all", "m-Q4_K_M.gguf": b"x"})

    status, _, err = onegpu("pull", "hf:o/odd-GGUF", "--endpoint", hub.endpoint, "--vram", "24GiB")

    assert status == 0
    assert "Q8_0 (14 B) is the largest that fits into" in err
    assert "(not planned: m-Q8_0.gguf is not a GGUF" in err


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["pull", "qwen3:33b"], 2, "did you mean qwen3:32b?"),
        (["pull"], 2, "required: NAME"),
        (["pull", "qwen3:0.6b", "--offline"], 1, "offline mode forbids"),
        (["pull", "m.gguf"], 2, "a path is not pulled"),
        (["pull", "hf:o/none:Q8_0"], 1, "has no repository o/none"),
        (["rm", "qwen3:0.6b"], 2, "There is no qwen3:0.6b here"),
        (["show", "qwen3:0.6b"], 2, "`onegpu pull qwen3:0.6b` may get it"),
        (["show", "none.gguf"], 2, "There is no none.gguf here"),
    ],
)
def test_mistakes_say_what_to_do(hub, onegpu, argv, status, message) -> None:
    where = ["--endpoint", hub.endpoint] if argv[0] == "pull" else []

    ended = onegpu(*argv, *where)

    assert ended[0] == status
    assert message in ended[2]


def test_the_catalogue_can_be_listed(onegpu) -> None:
    status, out, _ = onegpu("pull", "--list")

    assert status == 0
    for model in builtin_catalogue().models:
        assert f"\n{model.name}" in f"\n{out}"
    assert "hf:Qwen/Qwen3-32B-GGUF  Q4_K_M 19.8 GB" in out


def test_list_show_and_rm_see_what_was_pulled(hub, onegpu) -> None:
    onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)

    status, out, _ = onegpu("list")
    assert status == 0
    assert re.search(r"^qwen3:0\.6b-q8_0 +Q8_0 +\d+ B +onegpu +\d{4}-", out, re.MULTILINE)

    status, out, _ = onegpu("show", "qwen3:0.6b", "--verify")
    assert status == 0
    assert re.search(r"^architecture +qwen3$", out, re.MULTILINE)
    assert re.search(r"^parameters +16$", out, re.MULTILINE)
    assert re.search(r"^chat template +none$", out, re.MULTILINE)
    assert re.search(r"^license +apache-2\.0$", out, re.MULTILINE)
    assert f"{hashlib.sha256(WEIGHTS).hexdigest()}, verified now" in out

    status, out, _ = onegpu("rm", "-y", "qwen3:0.6b")
    assert (status, out) == (0, f"removed qwen3:0.6b-q8_0: {len(WEIGHTS)} B freed\n")
    assert onegpu("list")[1].startswith("No models here.")


def test_show_says_whether_it_fits(onegpu) -> None:
    status, out, _ = onegpu("show", str(DEMO))

    assert status == 0
    assert re.search(r"^plan +fits with 4 × 4096 tokens of \w+ KV: ", out, re.MULTILINE)
    assert re.search(r"^parameters +3\.74M$", out, re.MULTILINE)
    assert re.search(r"^chat template +yes$", out, re.MULTILINE)


def test_show_says_of_an_adapter_what_it_is(onegpu, tmp_path) -> None:
    adapter = write_adapter(tmp_path / "a.gguf", AdapterSpec(), ModelSpec())

    status, out, _ = onegpu("show", str(adapter))

    assert status == 0
    assert re.search(r"^plan +an adapter, which is planned with its model$", out, re.MULTILINE)


def test_show_notices_bytes_that_changed(hub, onegpu) -> None:
    path = Path(onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)[1].strip())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    status, out, _ = onegpu("show", "qwen3:0.6b", "--verify")

    assert status == 1
    assert "NOT what is there" in out


def test_list_and_show_speak_json(hub, onegpu) -> None:
    onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)

    [entry] = json.loads(onegpu("list", "--json")[1])
    shown = json.loads(onegpu("show", "qwen3:0.6b", "--json")[1])

    assert entry["size"] == shown["size"] == len(WEIGHTS)
    assert shown["files"][0]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert shown["tensor_types"] == {"F32": 64}


def test_a_damaged_model_is_marked(hub, onegpu) -> None:
    path = Path(onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)[1].strip())
    path.write_bytes(b"short")

    out = onegpu("list")[1]
    assert "qwen3:0.6b-q8_0 !" in out
    assert "not the size that was verified; get it again with: onegpu pull" in out
    assert onegpu("show", "qwen3:0.6b")[0] == 1


@pytest.mark.parametrize(("answer", "stays"), [("y\n", False), ("n\n", True), ("", True)])
def test_rm_asks_on_a_terminal(hub, onegpu, monkeypatch, answer, stays) -> None:
    path = Path(onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)[1].strip())
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)

    status, out, _ = onegpu("rm", "qwen3:0.6b")

    assert status == 0
    assert out.startswith(f"Remove qwen3:0.6b-q8_0 ({len(WEIGHTS)} B, {path})? [y/N] ")
    assert path.exists() is stays


def test_rm_does_not_guess_without_a_terminal(hub, onegpu) -> None:
    path = Path(onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)[1].strip())

    status, _, err = onegpu("rm", "qwen3:0.6b")

    assert status == 2
    assert "onegpu rm -y qwen3:0.6b-q8_0" in err
    assert path.exists()


def test_rm_removes_a_model_that_is_named_twice_once(hub, onegpu) -> None:
    onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)

    status, out, _ = onegpu("rm", "-y", "qwen3:0.6b", "qwen3:0.6b-q8_0")

    assert (status, out.count("removed")) == (0, 1)


def test_rm_tells_two_of_one_name_apart_by_their_paths(hub, onegpu) -> None:
    """The hub renamed a file while an earlier one was still on its way."""
    hub.add("o/r", {"old-Q8_0.gguf": WEIGHTS})
    hub.failures["old-Q8_0.gguf"] = [(404, {"X-Error-Code": "EntryNotFound"})]
    onegpu("pull", "hf:o/r:Q8_0", "--endpoint", hub.endpoint)
    hub.add("o/r", {"new-Q8_0.gguf": WEIGHTS})
    assert onegpu("pull", "hf:o/r:Q8_0", "--endpoint", hub.endpoint)[0] == 0

    status, _, err = onegpu("rm", "-y", "hf:o/r:Q8_0")
    assert (status, "any of models/o/r/new-Q8_0.gguf, models/o/r/old-Q8_0.gguf." in err) == (
        2,
        True,
    )
    assert onegpu("rm", "-y", "models/o/r/old-Q8_0.gguf")[0] == 0
    assert onegpu("rm", "-y", "hf:o/r:Q8_0")[0] == 0


def test_rm_checks_every_name_before_it_removes_one(hub, onegpu) -> None:
    path = Path(onegpu("pull", "qwen3:0.6b-q8_0", "--endpoint", hub.endpoint)[1].strip())

    assert onegpu("rm", "-y", "qwen3:0.6b", "qwen3:8b")[0] == 2
    assert path.exists()


def progress(*, terminal: bool) -> tuple[StreamProgress, FakeClock, io.StringIO]:
    clock, stream = FakeClock(), io.StringIO()
    return StreamProgress(stream, terminal=terminal, clock=clock), clock, stream


def test_progress_has_speed_and_time_left() -> None:
    shown, clock, stream = progress(terminal=True)
    shown.begin("m.gguf", total=20_000_000_000, done=4_000_000_000)
    for _ in range(4):
        clock.advance(5)
        shown.advance(250_000_000)

    lines = stream.getvalue().split("\r\x1b[K")[-1].split("\r")
    assert lines[-1].startswith("m.gguf   25 %  5 GB of 20 GB  50 MB/s  5 min 0 s left")
    shown.advance(-1_000_000_000)
    shown.end()
    assert stream.getvalue().endswith("m.gguf:  20 %  4 GB of 20 GB in 20 s\n")


def test_a_long_name_gives_way_to_speed_and_time_left(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown, clock, stream = progress(terminal=True)
    shown.begin(f"Qwen3-{'x' * 80}-UD-Q4_K_XL.gguf", total=20_000_000_000, done=0)
    for _ in range(2):
        clock.advance(5)
        shown.advance(250_000_000)

    line = stream.getvalue().split("\r")[-1].removesuffix("\x1b[K")
    assert len(line) == 79
    assert line.startswith("Qwen3-xxx")
    assert line.endswith("Q4_K_XL.gguf    2 %  500 MB of 20 GB  50 MB/s  6 min 30 s left")


def test_progress_elsewhere_is_a_line_now_and_then() -> None:
    shown, clock, stream = progress(terminal=False)
    shown.begin("m.gguf", total=1000_000_000, done=0)
    for _ in range(1000):
        clock.advance(0.5)
        shown.advance(1_000_000)
    shown.end()

    text = stream.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "m.gguf: 1 GB"
    assert lines[-1] == "m.gguf: 100 %  1 GB of 1 GB in 8 min 20 s, 2 MB/s"
    assert 10 <= len(lines) <= 20


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 0 s"), (209, "3 min 29 s"), (7300, "2 h 1 min")]
)
def test_durations_are_written_for_people(seconds, text) -> None:
    assert duration(seconds) == text
