"""Makes .venv and installs the pinned dependencies into it: what `make install` runs.

Looks for an NVIDIA card and a CUDA compiler and says what it builds llama.cpp for (install_machine).
Standard library only, and no syntax newer than Python 3.7, so that an old interpreter gets a clear
message instead of a traceback. A second run compares one stamp and returns at once.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator, NoReturn

from install_machine import Build, Machine, asked_build
from install_output import Failed, Reporter, packages_hint, run_logged
from install_test_data import fetch_test_data, pinned_requirement

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OLDEST = (3, 11)
NEWER_NAMES = ("python3.13", "python3.12", "python3.11", "python3.14")
BUILD_LOCK = ROOT / "requirements-build.lock"
RUNTIME_LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"
NATIVE = "llama-cpp-python"
# What the last complete installation, and the last compilation, were made from; both in .venv.
STAMP = "onegpu-install.json"
NATIVE_STAMP = "onegpu-native.json"


def main() -> int:
    """Bring .venv up to date with the locks; 0 when it is."""
    parser = argparse.ArgumentParser(description="Make .venv and install the pinned dependencies.")
    parser.add_argument(
        "--dev", action="store_true", help="also what `make check` and `make test` need"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what llama.cpp would be built for, and why"
    )
    options = parser.parse_args()
    use_supported_python()
    with only_one_at_a_time():
        try:
            install(dev=options.dev, dry_run=options.dry_run)
        except Failed as failure:
            print(f"\n{failure}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nStopped. Run it again to go on.", file=sys.stderr)
            return 130
    return 0


def use_supported_python() -> None:
    """Go on in a newer interpreter from PATH when this one is too old, or exit with advice."""
    if sys.version_info >= OLDEST:
        return
    for name in NEWER_NAMES:
        found = shutil.which(name)
        # A version manager's shim may exist for an interpreter that is not there: try it first.
        if found and runs([found, "-c", "import ensurepip"]):
            os.execv(found, [found, *sys.argv])
    fail(
        f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.\n"
        f"{packages_hint('python3', 'python3-venv')}\n"
        "Or name another interpreter: make install PYTHON=/path/to/python3.12"
    )


def runs(command: list[str]) -> bool:
    """Whether `command` ends with status 0; its output is dropped."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def fail(message: str) -> NoReturn:
    """Print `message` and exit with status 1."""
    print(message, file=sys.stderr)
    raise SystemExit(1)


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Hold a lock on the checkout: two `make` runs must not install into one .venv at a time."""
    handle = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("Waiting for another installation in this checkout to finish ...", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def install(*, dev: bool, dry_run: bool = False) -> None:
    """Run the steps that the stamp says are missing. Raises Failed with advice."""
    asked_for_dev = dev
    stamp = read_json(VENV / STAMP)
    built = read_json(VENV / NATIVE_STAMP)
    # Development tools stay once installed: `make serve` after `make test` is a no-op too.
    dev = dev or bool(stamp.get("dev"))
    build = asked_build(os.environ, built)
    wanted: dict[str, object] = {"dev": dev, "root": str(ROOT), "locks": digest(dev=dev)}
    machine = Machine(os.environ)
    if build is None and machine.traces():
        wanted["cards"] = machine.traces()
    wanted["cmake_args"] = build.cmake_args if build else stamp.get("cmake_args", "")
    look_again = build is None and "CPU" in os.environ
    reporter = Reporter(sys.stdout)
    if stamp == wanted and PYTHON.exists() and not (dry_run or look_again):
        if asked_for_dev:
            fetch_test_data(reporter, ROOT, VENV)
        return
    build = build or machine.choose()
    reporter.note(build.reason)
    if dry_run:
        reporter.note(f"CMAKE_ARGS={build.cmake_args}")
        return
    wanted["cmake_args"] = build.cmake_args
    make_environment(reporter)
    (VENV / "install.log").write_text("", encoding="utf-8")
    (VENV / STAMP).unlink(missing_ok=True)
    pip(reporter, "Build tools", ["--requirement", str(BUILD_LOCK)], hashes=True)
    install_native(reporter, build, str(built.get("cmake_args", "")))
    lock = DEV_LOCK if dev else RUNTIME_LOCK
    pip(reporter, "Dependencies", ["--no-build-isolation", "--requirement", str(lock)], hashes=True)
    check_native(reporter, build)
    project = ["--no-build-isolation", "--no-deps", "--editable", str(ROOT)]
    pip(reporter, "onegpu itself", project, hashes=False)
    (VENV / STAMP).write_text(json.dumps(wanted), encoding="utf-8")
    if dev:
        fetch_test_data(reporter, ROOT, VENV)
    reporter.done("Installed: .venv/bin/onegpu")


def check_native(reporter: Reporter, build: Build) -> None:
    """Load llama.cpp: one built for another CPU or CUDA fails here, with advice, not in the server."""
    # The build is for the machine, also where this shell is to see only some of its cards, or none.
    code = "import os, sys; os.environ.pop('CUDA_VISIBLE_DEVICES', None)"
    code += "; import llama_cpp; llama_cpp.llama_backend_init()"
    if build.cuda and not build.asked:
        code += (
            "; llama_cpp.llama_supports_gpu_offload() or sys.exit('llama.cpp finds no CUDA card')"
        )
    loads = [str(PYTHON), "-c", code]
    run_logged(reporter, "llama.cpp loads", loads, log=VENV / "install.log", cwd=ROOT)


def read_json(path: Path) -> dict[str, object]:
    """Read a stamp; empty when there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def digest(*, dev: bool) -> str:
    """Hash over the content of all that decides what is installed."""
    import tomllib  # newer than the interpreters that main() turns away

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts = [project[key] for key in ("build-system", "project")]
    whole = hashlib.sha256(json.dumps([*parts, project["tool"]["setuptools"]]).encode())
    for lock in [BUILD_LOCK, RUNTIME_LOCK, *([DEV_LOCK] if dev else [])]:
        whole.update(lock.read_bytes() + b"\0")
    return whole.hexdigest()


def make_environment(reporter: Reporter) -> None:
    """Create .venv when it is missing or its interpreter is gone."""
    probe = [str(PYTHON), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
    if PYTHON.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return
    missing = subprocess.run(
        [sys.executable, "-c", "import ensurepip, venv"], capture_output=True, check=False
    )
    if missing.returncode != 0:
        raise Failed(
            "This Python has no venv module with pip (Debian and Ubuntu package it apart).\n"
            + packages_hint("python3-venv", f"python3.{sys.version_info[1]}-venv")
        )
    reporter.start("Virtual environment .venv")
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise Failed(f"python -m venv failed:\n{made.stdout}{made.stderr}")
    reporter.finish()


def pip(reporter: Reporter, title: str, arguments: list[str], *, hashes: bool) -> None:
    """Run `pip install` in .venv with a progress line; the whole output goes to the log."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--require-hashes"] if hashes else []
    run_logged(reporter, title, command + arguments, log=VENV / "install.log", cwd=ROOT)


def install_native(reporter: Reporter, build: Build, built_with: str) -> None:
    """Compile llama-cpp-python from its source distribution, unless that release is there.

    `built_with` are the CMAKE_ARGS of the one that is there. With CMAKE_ARGS pip's cache is left
    alone both ways: its wheels are not keyed by CMAKE_ARGS, and a CPU build would silently stand in
    for a CUDA build.
    """
    lock = RUNTIME_LOCK.read_text(encoding="utf-8")
    pinned = pinned_requirement(NATIVE, lock, RUNTIME_LOCK.name)
    version = pinned.split("==")[1].split()[0]
    present = list(VENV.glob(f"lib/python*/site-packages/llama_cpp_python-{version}.dist-info"))
    rebuild = build.cmake_args != built_with
    made_from = {"version": version, "cmake_args": build.cmake_args, "asked": build.asked}
    if present and not rebuild:
        (VENV / NATIVE_STAMP).write_text(json.dumps(made_from), encoding="utf-8")
        return
    check_compiler()
    requirement = VENV / "llama-cpp-python.lock"
    requirement.write_text(pinned, encoding="utf-8")
    arguments = ["--verbose", "--no-build-isolation", "--no-deps"]
    arguments += ["--requirement", str(requirement)]
    os.environ.pop("CMAKE_ARGS", None)
    if build.cmake_args:
        arguments += ["--no-cache-dir", "--force-reinstall"]
        os.environ.update(build.environment, CMAKE_ARGS=build.cmake_args)
        reporter.note(f"CMAKE_ARGS={build.cmake_args}")
    elif rebuild:
        arguments += ["--force-reinstall"]
    took = "CUDA: 10 to 30 minutes" if build.cuda else "some minutes"
    pip(reporter, f"llama.cpp (compiled here, {took})", arguments, hashes=True)
    (VENV / NATIVE_STAMP).write_text(json.dumps(made_from), encoding="utf-8")


def check_compiler() -> None:
    """Raise Failed when no C or C++ compiler is found: minutes earlier than CMake would."""
    for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++"))):
        chosen = os.environ.get(variable, "").split()
        if not any(shutil.which(name) for name in (chosen[:1] or names)):
            wanted = f"${variable} = {chosen[0]}" if chosen else " or ".join(names)
            raise Failed(
                "llama-cpp-python is compiled from source, and no C++ compiler was found "
                f"({wanted}).\n{packages_hint('g++', 'make')}"
            )


if __name__ == "__main__":
    sys.exit(main())
