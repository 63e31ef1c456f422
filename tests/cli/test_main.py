"""The `onegpu` command: exit status, messages, help, and what it hands to the assembly."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from server import __version__
from server.cli.main import main
from server.core.errors import ConfigError, ModelFileError
from server.settings import Settings
from server.settings.fields import leaves
from server.settings.report import written

ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(monkeypatch):
    """Stand in for the assembly; has the settings that `serve` was given."""
    calls: list[Settings] = []

    def serve(settings: Settings, *_others: object) -> int:
        calls.append(settings)
        return 0

    assembly = ModuleType("server.assembly")
    monkeypatch.setattr(assembly, "serve", serve, raising=False)
    monkeypatch.setitem(sys.modules, "server.assembly", assembly)
    return calls


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("m.gguf")
    path.write_bytes(b"GGUF")
    return path


def exit_status(*argv: str) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else -1


def test_serve_hands_the_settings_of_all_flags_on(served, model) -> None:
    argv = ["serve", str(model), "--host", "0.0.0.0", "--port", "81", "--slots", "2"]
    argv += ["--n-ctx", "512", "--kv-cells", "700", "--n-gpu-layers", "45", "--kv-type", "q8_0"]

    assert exit_status(*argv) == 0

    [settings] = served
    assert settings.model.path == model
    assert settings.model.n_gpu_layers == 45
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 81)
    engine = settings.engine
    assert (engine.slots, engine.n_ctx, engine.kv_cells, engine.kv_type) == (2, 512, 700, "q8_0")


def test_serve_reads_the_config_and_flags_win(served, model) -> None:
    Path("c.yaml").write_text("model: {path: m.gguf}\nserver: {port: 5}\n", encoding="utf-8")

    assert exit_status("serve", "--config", "c.yaml", "--port", "6") == 0

    assert served[0].model.path == model
    assert served[0].server.port == 6


def test_names_of_the_catalogue_and_the_hub_are_left_to_the_fetcher(served, model) -> None:
    for name in ("qwen3:4b", "hf:owner/repo:Q4_K_M", "hf:owner/repo/file.gguf"):
        assert exit_status("serve", name) == 0
    assert [str(settings.model.path) for settings in served] == [
        "qwen3:4b",
        "hf:owner/repo:Q4_K_M",
        "hf:owner/repo/file.gguf",
    ]


def test_what_is_fetched_is_found_or_said_to_be_missing(served, model, monkeypatch) -> None:
    from server.cli import pull

    fetchers = []
    pulled = lambda text, _settings: Path(f"models/{text}.gguf")  # noqa: E731 - a stand-in
    monkeypatch.setattr(pull, "ensure", pulled)
    monkeypatch.setattr(
        sys.modules["server.assembly"], "serve", lambda _settings, fetch, *_: fetchers.append(fetch)
    )
    main(["serve", str(model)])
    (fetch,) = fetchers
    assert fetch("m.gguf") == Path("m.gguf")
    assert fetch("qwen3:4b") == Path("models/qwen3:4b.gguf")
    with pytest.raises(ConfigError, match="does not exist"):
        fetch("other.gguf")


def test_allow_cpu_means_no_layers_on_a_gpu(served, model) -> None:
    assert exit_status("serve", str(model), "--allow-cpu") == 0
    assert served[0].model.n_gpu_layers == 0


def test_serve_returns_what_the_assembly_returns(served, model, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["server.assembly"], "serve", lambda *_: 1)

    assert exit_status("serve", str(model)) == 1


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (ModelFileError("m.gguf is truncated"), 1, "onegpu: m.gguf is truncated\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_failures_while_running_have_their_status(
    served, model, monkeypatch, capsys, failure, status, message
) -> None:
    def fail(*_):
        raise failure

    monkeypatch.setattr(sys.modules["server.assembly"], "serve", fail)

    assert exit_status("serve", str(model)) == status
    assert capsys.readouterr().err == message


def test_a_missing_model_says_what_there_is_and_what_to_do(served, model, capsys) -> None:
    assert exit_status("serve", "other.gguf") == 2

    message = capsys.readouterr().err
    assert f"The model file other.gguf does not exist (looked in {Path.cwd()})." in message
    assert "There is: m.gguf." in message
    assert "onegpu serve path/to/model.gguf" in message
    assert served == []


def test_a_directory_is_not_a_model(served, model, capsys) -> None:
    assert exit_status("serve", ".") == 2

    assert capsys.readouterr().err == (". is a directory; name the GGUF file. There is: m.gguf.\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["serve", "--port", "x"], '--port: server.port: must be a whole number, not "x"'),
        (["serve", "--slots", "999"], '--slots: engine.slots: must be at most 256; it is "999"'),
        (["serve", "--slot", "9"], "unknown argument --slot; did you mean --slots?"),
        (["serve", "--kvcells=9"], "unknown argument --kvcells; did you mean --kv-cells?"),
        (["serve", "a", "b"], "unknown argument b\n"),
        (["serve", "--slots"], "argument --slots: expected one argument"),
        (["serve", "--config", "none.yaml"], "none.yaml: there is no such file"),
        (["check-config"], "the following arguments are required: FILE"),
        (["check-config", "none.yaml"], "none.yaml: there is no such file"),
        (["srve"], "invalid choice: 'srve'"),
    ],
)
def test_wrong_usage_is_status_2_with_a_message(served, model, capsys, argv, message) -> None:
    assert exit_status(*argv) == 2

    assert message in capsys.readouterr().err
    assert served == []


def test_check_config_shows_values_and_where_they_come_from(model, monkeypatch, capsys) -> None:
    Path("c.yaml").write_text("engine:\n  slots: 2\n", encoding="utf-8")
    monkeypatch.setenv("ONEGPU_GATEWAY__TIMEOUT__READ", "90s")

    assert exit_status("check-config", "c.yaml") == 0

    out = capsys.readouterr().out
    assert out.startswith("c.yaml: ok\n")
    assert re.search(r"^engine\.slots +2 +c\.yaml:2$", out, re.MULTILINE)
    assert re.search(r"^engine\.kv_cells +8192 +derived \(default: null\)$", out, re.MULTILINE)
    assert re.search(
        r"^gateway\.timeout\.read +90s +ONEGPU_GATEWAY__TIMEOUT__READ$", out, re.MULTILINE
    )
    assert len(out.splitlines()) == 2 + len(list(leaves(Settings)))


def test_check_config_tells_all_mistakes(model, capsys) -> None:
    Path("c.yaml").write_text("engine:\n  slots: 0\n  foo: 1\n", encoding="utf-8")

    assert exit_status("check-config", "c.yaml") == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "c.yaml:2: engine.slots" in captured.err
    assert "c.yaml:3: engine.foo" in captured.err


def test_help_teaches_and_tells_the_true_defaults(capsys) -> None:
    assert exit_status("serve", "--help") == 0

    out = capsys.readouterr().out
    assert "slots × n_ctx = kv_cells" in out
    defaults = {".".join(path): written(field, field.default) for path, field in leaves(Settings)}
    shown = {
        "MODEL": defaults["model.path"],
        "--n-gpu-layers": defaults["model.n_gpu_layers"],
        "--slots": defaults["engine.slots"],
        "--n-ctx": defaults["engine.n_ctx"],
        "--kv-type": defaults["engine.kv_type"],
        "--host": defaults["server.host"],
        "--port": defaults["server.port"],
    }
    for flag, default in shown.items():
        assert re.search(rf"^  {flag} .*\[{re.escape(default)}\]$", out, re.MULTILINE), flag


def test_no_command_is_help_and_status_2(capsys) -> None:
    assert exit_status() == 2
    assert "check-config" in capsys.readouterr().out


def test_version(capsys) -> None:
    assert exit_status("--version") == 0
    assert capsys.readouterr().out == f"onegpu {__version__}\n"
    assert exit_status("version") == 0
    assert "llama-cpp-python 0.3.36" in capsys.readouterr().out


def test_help_and_checks_import_nothing_heavy(tmp_path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"data_dir: {tmp_path}\n", encoding="utf-8")
    script = (
        "import sys; from server.cli.main import main\n"
        f"assert main(['check-config', {str(config)!r}]) == 0\n"
        "heavy = {'llama_cpp', 'fastapi', 'starlette', 'uvicorn', 'numpy', 'jinja2'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_package_runs_as_a_module() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "server", "--version"], capture_output=True, text=True, check=True
    )

    assert ended.stdout == f"onegpu {__version__}\n"


def test_a_reader_that_has_enough_ends_a_command_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)

    with os.fdopen(writer, "wb") as nobody:
        ended = subprocess.run(
            [sys.executable, "-m", "server", "plan", "models/demo.gguf", "--json"],
            cwd=ROOT,
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (ended.returncode, ended.stderr) == (1, "")
