"""The installer: progress lines, advice, and when it has nothing to do."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

import install
import install_output
from install_machine import Build, Machine
from install_test_data import pinned_requirement

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


def pinned_native() -> str:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return pinned_requirement(install.NATIVE, lock, "requirements.lock")


def test_the_lock_names_the_compiled_package_with_its_hash() -> None:
    pinned = pinned_native()

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
    for variable in ("CMAKE_ARGS", "CPU"):
        monkeypatch.delenv(variable, raising=False)
    stamp = {"dev": True, "cmake_args": "-DX=1", "root": str(tmp_path)}
    stamp["locks"] = install.digest(dev=True)
    (venv / install.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    (venv / install.NATIVE_STAMP).write_text('{"cmake_args": "-DX=1"}', encoding="utf-8")

    def ran(_reporter):
        raise RanError

    monkeypatch.setattr(install, "make_environment", ran)
    monkeypatch.setattr(install, "fetch_test_data", lambda *_: print("test data"))
    return tmp_path


class RanError(Exception):
    """An installation step ran."""


@pytest.mark.parametrize(("dev", "out"), [(True, "test data\n"), (False, "")])
def test_a_second_run_installs_nothing_and_keeps_the_build_options(
    checkout, dev, out, capsys
) -> None:
    install.install(dev=dev)

    assert capsys.readouterr().out == out


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


def test_cpu_0_forgets_build_options_and_looks_at_the_machine(
    checkout, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("CPU", "0")
    monkeypatch.setattr(Machine, "choose", lambda _self: Build("", "looked, and found none"))
    with pytest.raises(RanError):
        install.install(dev=False)

    assert capsys.readouterr().out == "looked, and found none\n"


@pytest.mark.parametrize("traces", [["dev/nvidia0"], []])
def test_a_card_that_comes_or_goes_is_noticed(checkout, monkeypatch, traces) -> None:
    """Automatic builds are kept as long as the machine shows the same cards; the driver is not asked."""
    (checkout / ".venv" / install.NATIVE_STAMP).write_text(
        '{"cmake_args": "-DX=1", "asked": false}', encoding="utf-8"
    )
    stamp = json.loads((checkout / ".venv" / install.STAMP).read_text(encoding="utf-8"))
    stamp |= {"cards": traces} if traces else {}
    (checkout / ".venv" / install.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    monkeypatch.setattr(Machine, "choose", lambda _self: Build("", "as before"))

    monkeypatch.setattr(Machine, "traces", lambda _self: traces)
    install.install(dev=True)

    monkeypatch.setattr(Machine, "traces", lambda _self: ["dev/nvidia1"])
    with pytest.raises(RanError):
        install.install(dev=True)


def test_a_dry_run_says_what_would_be_built_and_runs_nothing(checkout, monkeypatch, capsys) -> None:
    build = Build("-DGGML_CUDA=ON", "llama.cpp for CUDA: a card")
    monkeypatch.setenv("CPU", "0")
    monkeypatch.setattr(Machine, "choose", lambda _self: build)

    install.install(dev=False, dry_run=True)

    assert capsys.readouterr().out == "llama.cpp for CUDA: a card\nCMAKE_ARGS=-DGGML_CUDA=ON\n"


@pytest.mark.parametrize(
    ("build", "built_with", "wanted"),
    [
        (Build("", "cpu"), "", []),
        (Build("", "cpu"), "-DGGML_CUDA=ON", ["--force-reinstall"]),
        (
            Build("-DGGML_CUDA=ON", "cuda", environment={"CUDACXX": "/cuda/nvcc"}),
            "",
            ["--no-cache-dir", "--force-reinstall"],
        ),
    ],
)
def test_another_build_is_compiled_anew_and_never_taken_from_the_cache(
    checkout, monkeypatch, build, built_with, wanted
) -> None:
    """pip itself is replaced; what it would be told is looked at."""
    ran: list[list[str]] = []
    monkeypatch.setattr(install, "RUNTIME_LOCK", ROOT / "requirements.lock")
    version = pinned_native().split("==")[1].split()[0]
    packages = checkout / ".venv" / "lib" / "python3.11" / "site-packages"
    (packages / f"llama_cpp_python-{version}.dist-info").mkdir(parents=True)
    monkeypatch.setattr(install, "check_compiler", lambda: None)
    monkeypatch.setattr(install, "pip", lambda _r, _t, arguments, **_: ran.append(arguments))
    for variable in ("CMAKE_ARGS", "CUDACXX"):
        monkeypatch.setenv(variable, "left over")

    install.install_native(install_output.Reporter(io.StringIO()), build, built_with)

    assert [flag for command in ran for flag in command if flag in wanted] == wanted
    assert len(ran) == bool(wanted)
    if ran:
        assert os.environ.get("CMAKE_ARGS", "") == build.cmake_args
        assert os.environ["CUDACXX"] == build.environment.get("CUDACXX", "left over")
    kept = json.loads((checkout / ".venv" / install.NATIVE_STAMP).read_text(encoding="utf-8"))
    assert kept == {"version": version, "cmake_args": build.cmake_args, "asked": False}


@pytest.mark.parametrize("visible", ["", "1"])
def test_a_shell_that_sees_no_card_does_not_fail_the_build_for_it(
    tmp_path, monkeypatch, visible
) -> None:
    (tmp_path / "llama_cpp.py").write_text(
        "import os\n"
        "def llama_backend_init(): pass\n"
        "def llama_supports_gpu_offload(): return 'CUDA_VISIBLE_DEVICES' not in os.environ\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "PYTHON", sys.executable)
    monkeypatch.setattr(install, "ROOT", tmp_path)

    install.check_native(install_output.Reporter(io.StringIO()), Build("-DGGML_CUDA=ON", "a card"))
