"""The steps of the image, run here without an engine: what is downloaded, built, served and stopped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.scripts.dockerfile import LAST, ROOT, STEPS, all_of, copied


def fake(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("stage", "package"), [("build", "g++"), ("run", "libgomp1")])
def test_packages_are_installed_without_recommendations(tmp_path, stage, package) -> None:
    fake(tmp_path / "bin" / "apt-get", f'echo "$DEBIAN_FRONTEND $*" >> {tmp_path}/calls')
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "APT_LISTS": str(tmp_path / "lists")}
    subprocess.run([STEPS / "packages.sh", stage], env=environment, check=True)
    update, install = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert update == "noninteractive update -qq"
    assert "--no-install-recommends" in install
    assert package in install.split()


def test_the_tools_are_installed_with_their_hashes_checked(tmp_path) -> None:
    pip = f'echo "$*" > {tmp_path}/calls'
    python = fake(
        tmp_path / "python",
        f"mkdir -p $3/bin; printf '#!/bin/sh\\n{pip}\\n' > $3/bin/pip; chmod +x $3/bin/pip",
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
    subprocess.run([STEPS / "tools.sh", tmp_path / "tools"], env=environment, check=True)
    called = (tmp_path / "calls").read_text(encoding="utf-8")
    assert "--require-hashes --requirement requirements-build.lock" in called


@pytest.mark.parametrize("architectures", ["", "89", "86;90"])
def test_llama_cpp_is_compiled_from_the_pinned_source_for_the_cards_named(
    tmp_path, architectures
) -> None:
    tools = tmp_path / "tools" / "bin"
    fake(
        tools / "pip",
        f'echo "$*" > {tmp_path}/calls; echo "$CMAKE_ARGS" > {tmp_path}/cmake\n'
        f'while [ $# -gt 0 ]; do [ "$1" = --requirement ] && cp "$2" {tmp_path}/lock; shift; done',
    )
    (tools / "python").symlink_to(sys.executable)
    environment = {"PATH": "/usr/bin:/bin", "CUDA_ARCHITECTURES": architectures}
    command = [STEPS / "native.sh", tools.parent, tmp_path / "wheels"]
    subprocess.run(command, env=environment, check=True, capture_output=True)

    lock = (tmp_path / "lock").read_text(encoding="utf-8")
    assert lock.startswith("llama-cpp-python==")
    assert "--hash=sha256:" in lock
    called = (tmp_path / "calls").read_text(encoding="utf-8")
    assert "--require-hashes" in called
    assert "--no-deps" in called
    cmake = (tmp_path / "cmake").read_text(encoding="utf-8").split()
    assert "-DGGML_NATIVE=OFF" in cmake
    assert ("-DGGML_CUDA=ON" in cmake) == bool(architectures)
    assert (f"-DCMAKE_CUDA_ARCHITECTURES={architectures}" in cmake) == bool(architectures)
    assert "native" not in architectures


def repack(name: str, wheels: Path) -> tuple[str, Path]:
    """Pack an installed distribution into a wheel again; return the pinned requirement and the file."""
    distribution = importlib.metadata.distribution(name)
    tag = re.search(r"^Tag: (.+)$", str(distribution.read_text("WHEEL")), re.MULTILINE)
    assert tag
    stem = re.sub(r"[^\w.]+", "_", distribution.metadata["Name"])
    path = wheels / f"{stem}-{distribution.version}-{tag[1]}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in distribution.files or ():
            if ".." not in file.parts and file.suffix != ".pyc" and file.name != "direct_url.json":
                wheel.write(str(distribution.locate_file(file)), str(file))
    return f"{distribution.metadata['Name']}=={distribution.version}", path


def locked_names() -> list[str]:
    """Names in requirements.lock that this environment has, llama-cpp-python aside."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    names = re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)
    installed = {
        re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower()
        for d in importlib.metadata.distributions()
    }
    return [name for name in names if name in installed and name != "llama-cpp-python"]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """What the build stage leaves at /opt/onegpu: its COPYs and RUNs carried out in a folder.

    Packages, tools and the compiled wheel are those of this environment, packed again; the lock
    that is checked names their hashes.
    """
    folder = tmp_path_factory.mktemp("image")
    source, wheels, packages = folder / "src", folder / "wheels", folder / "packages"
    for path in (source, wheels, packages):
        path.mkdir()
    for sources, target in copied(0):
        for name in sources:
            if (ROOT / name).is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, source / target, ignore=skip, dirs_exist_ok=True)
            else:
                (source / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, source / target)
    lock = []
    for name in locked_names():
        pinned, wheel = repack(name, packages)
        lock.append(f"{pinned} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    lock.append("llama-cpp-python==0.0.0 \\\n    --hash=sha256:0\n    # via onegpu\n")
    (folder / "lock").write_text("".join(lock), encoding="utf-8")
    repack("llama-cpp-python", wheels)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHON": sys.executable,
        "LOCK": str(folder / "lock"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(packages),
        "PIP_NO_COMPILE": "1",
    }
    places = {"/opt/tools": str(Path(sys.prefix)), "/wheels": str(wheels)}
    places["/opt/onegpu"] = str(folder / "onegpu")
    steps = [i.text for i in all_of("RUN", 0) if "app.sh" in i.text or "install.sh" in i.text]
    assert steps
    for step in steps:
        for inside, outside in places.items():
            step = step.replace(f" {inside}", f" {outside}")  # noqa: PLW2901 - one after the other
        done = subprocess.run(
            ["bash", "-euc", step],
            check=False,
            cwd=source,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "onegpu"


@pytest.mark.slow
def test_the_build_steps_make_an_environment_of_their_own(prefix) -> None:
    code = "import server, llama_cpp; print(server.__file__); print(llama_cpp.__file__)"
    done = subprocess.run(
        [prefix / "bin" / "python", "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert all(line.startswith(str(prefix)) for line in done.stdout.splitlines())
    assert not (prefix / "bin" / "pip").exists()


@pytest.mark.slow
def test_a_package_with_another_hash_is_not_installed(prefix, tmp_path) -> None:
    folder = prefix.parent
    lock = (folder / "lock").read_text(encoding="utf-8").replace("sha256:", "sha256:0", 1)
    wrong = re.sub(r"sha256:0(\w{63})\w", r"sha256:0\1", lock, count=1)
    (tmp_path / "lock").write_text(wrong, encoding="utf-8")
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    environment |= {"LOCK": str(tmp_path / "lock"), "PIP_FIND_LINKS": str(folder / "packages")}
    done = subprocess.run(
        [STEPS / "install.sh", tmp_path / "onegpu", folder / "wheels"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.native
def test_the_image_serves_answers_its_health_check_and_stops_on_sigterm(prefix, tmp_path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "models" / "demo.gguf", tmp_path / "models")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "ONEGPU_ENGINE__THREADS": "1",
        "ONEGPU_SERVER__HOST": "127.0.0.1",
        "ONEGPU_SERVER__PORT": "0",
        "http_proxy": "http://127.0.0.1:9",
    }
    checker = [prefix / "bin" / "python", STEPS / "healthcheck.py"]
    command = [prefix / "bin" / "onegpu", *json.loads(all_of("CMD", LAST)[0].text)]
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout
        ready = next(line for line in server.stdout if "is ready on" in line)
        found = re.search(r"is ready on http://127\.0\.0\.1:(\d+)", ready)
        assert found, ready
        environment["ONEGPU_SERVER__PORT"] = found[1]

        def healthy() -> int:
            return subprocess.run(
                checker, env=environment, capture_output=True, check=False
            ).returncode

        assert healthy() == 0
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
        assert server.returncode == 0
        assert healthy() == 1
    finally:
        server.kill()
        server.wait()
