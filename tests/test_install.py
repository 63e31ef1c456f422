"""The installer: progress lines, advice, and when it has nothing to do."""

import io
import json
import sys
from pathlib import Path

import pytest

import install
import install_output

ROOT = Path(__file__).resolve().parent.parent


def test_without_a_terminal_there_is_a_line_every_five_percent() -> None:
    out = io.StringIO()
    reporter = install_output.Reporter(out)
    reporter.start("llama.cpp")
    reporter.feed("  Downloading llama_cpp_python-0.3.36.tar.gz (76.6 MB)")
    reporter.feed("  *** Building project with Ninja...")
    for done in range(1, 201):
        reporter.feed(f"  [{done}/200] /usr/bin/c++ -O3 file{done}.cpp")
    reporter.finish()

    lines = out.getvalue().splitlines()
    counted = [line for line in lines if "/200" in line]
    assert lines[:2] == ["llama.cpp ...", "  downloading llama_cpp_python, 76.6 MB"]
    assert len(counted) == 21
    assert "[##########          ] 100/200" in counted[10]
    assert "200/200" in counted[-1]
    assert lines[-1].startswith("llama.cpp: done in 0:0")


def test_on_a_terminal_one_line_is_rewritten() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    reporter = install_output.Reporter(out)
    reporter.start("llama.cpp")
    for done in range(1, 11):
        reporter.feed(f"[{done}/10] c++")
    reporter.tick()
    reporter.finish()

    assert out.getvalue().count("\n") == 1
    assert out.getvalue().count("\r\x1b[K") == 13


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("CMake Error: No CMAKE_CXX_COMPILER could be found.", "compiler is missing"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "PARALLEL_LEVEL=1"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "not the one that was pinned"),
        ("NameResolutionError: Temporary failure in name resolution", "check the network"),
        ("ERROR: No matching distribution found for numpy", "suits this Python and platform"),
        ("Could NOT find CUDAToolkit: CUDA Toolkit not found", "build for the CPU"),
    ],
)
def test_a_known_failure_gets_advice(log, advice) -> None:
    assert advice in install_output.advice_for(f"noise\n{log}\nnoise")


def test_an_unknown_failure_gets_none() -> None:
    assert install_output.advice_for("something else went wrong") == ""


def test_a_failing_step_shows_the_end_of_its_log(tmp_path) -> None:
    log = tmp_path / "install.log"
    script = "for i in range(60): print('line', i)\nprint('No space left on device')\nexit(3)"
    command = [sys.executable, "-c", script]

    with pytest.raises(install_output.Failed) as caught:
        install_output.run_logged(
            install_output.Reporter(io.StringIO()), "Step", command, log=log, cwd=tmp_path
        )

    message = str(caught.value)
    assert message.startswith(f"Step failed (exit status 3). The end of {log}:\n    line 36\n")
    assert message.endswith("and .venv 1 GB.")
    assert "line 0\n" in log.read_text(encoding="utf-8")


def test_the_lock_names_the_compiled_package_with_its_hash() -> None:
    pinned = install.native_requirement((ROOT / "requirements.lock").read_text(encoding="utf-8"))

    assert pinned.startswith("llama-cpp-python==")
    assert pinned.count("==") == 1
    assert "--hash=sha256:" in pinned


def test_a_missing_compiler_is_said_before_anything_is_compiled(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)

    with pytest.raises(install_output.Failed, match="no C\\+\\+ compiler was found"):
        install.check_compiler()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A complete installation in a checkout of its own; a step that runs raises Ran."""
    for name in ("requirements-build.lock", "requirements.lock", "requirements-dev.lock"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", venv)
    monkeypatch.setattr(install, "PYTHON", venv / "bin" / "python")
    for constant in ("BUILD_LOCK", "RUNTIME_LOCK", "DEV_LOCK"):
        monkeypatch.setattr(install, constant, tmp_path / getattr(install, constant).name)
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    stamp = {"dev": True, "cmake_args": "-DX=1", "root": str(tmp_path)}
    stamp["locks"] = install.digest(dev=True)
    (venv / install.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    (venv / install.NATIVE_STAMP).write_text('{"cmake_args": "-DX=1"}', encoding="utf-8")

    def ran(_reporter):
        raise RanError

    monkeypatch.setattr(install, "make_environment", ran)
    return tmp_path


class RanError(Exception):
    """An installation step ran."""


@pytest.mark.parametrize("dev", [True, False])
def test_a_second_run_does_nothing_and_keeps_the_build_options(checkout, dev, capsys) -> None:
    install.install(dev=dev)

    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("lock", ["requirements-build.lock", "requirements.lock"])
def test_a_changed_lock_installs_again(checkout, lock) -> None:
    (checkout / lock).write_text("changed", encoding="utf-8")

    with pytest.raises(RanError):
        install.install(dev=False)


@pytest.mark.parametrize("arguments", ["", "-DGGML_CUDA=ON"])
def test_other_build_options_install_again(checkout, monkeypatch, arguments) -> None:
    monkeypatch.setenv("CMAKE_ARGS", arguments)

    with pytest.raises(RanError):
        install.install(dev=False)


def test_a_checkout_that_moved_installs_again(checkout, monkeypatch) -> None:
    monkeypatch.setattr(install, "ROOT", checkout / ".." / checkout.name)

    with pytest.raises(RanError):
        install.install(dev=False)
