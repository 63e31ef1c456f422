"""Whether a CUDA compiler can build llama.cpp for a card, tried before minutes are spent on it.

Like scripts/install.py: standard library only, nothing newer than Python 3.7.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from install_output import Failed

HANGS = 124
"""Status of a tool that does not come to an end, as the command `timeout` gives it."""
_TRIAL = "#include <cublas_v2.h>\n__global__ void nothing() {}\n"
_WAYS_OUT = """\
Or take the container, which brings its own toolkit (docs/gpu.md), or build for the CPU, which is
many times slower: CPU=1 make install"""

_TRIAL_ADVICE = {
    r"unsupported (GNU|clang) version|host_config\.h": """\
nvcc {version} does not take this machine's C++ compiler, which is too new for it. Install an older
one beside it and name it: CUDAHOSTCXX=g++-13 make install; or install a newer CUDA toolkit.""",
    r"cublas_v2\.h|cannot find -lcublas": """\
The CUDA toolkit of nvcc {version} ({nvcc}) lacks cuBLAS, which llama.cpp needs. Install its
development files, in NVIDIA's package repository libcublas-dev, or the whole cuda-toolkit.""",
    r"[Uu]nsupported gpu architecture|is not defined for option 'gpu-architecture'": """\
nvcc {version} ({nvcc}) cannot compile for this card: it is too old for it, or the card for it.
Install another version of the CUDA toolkit.""",
    r"[Nn]o such file or directory.*(g\+\+|gcc|cc1plus)|(g\+\+|gcc): not found": """\
nvcc {version} found no C++ compiler to work with: install g++ (Debian: apt-get install g++).""",
}


@dataclass(frozen=True)
class Card:
    """A card as the driver names it."""

    name: str
    capability: str
    """Compute capability, such as 8.9."""

    @property
    def architecture(self) -> str:
        """CMake's name of it: 89."""
        return self.capability.replace(".", "")


def check_compiler(
    nvcc: str, cards: list[Card], driver: str, environment: Mapping[str, str]
) -> tuple[str, list[Card]]:
    """Return nvcc's version and the cards to build for: without those that it is too new for.

    Raises Failed when it cannot build for these cards and this driver, or is too old for one.
    """
    shown = re.search(r"release ([\d.]+)", run([nvcc, "--version"]).stdout)
    if shown is None:
        raise Failed(f"{nvcc} does not run: {nvcc} --version names no release.\n{_WAYS_OUT}")
    version = shown.group(1)
    if driver and _major(version) > _major(driver):
        raise Failed(
            f"nvcc {version} ({nvcc}) is too new for the driver, which runs CUDA up to {driver}: "
            "update the driver, or install an older toolkit and name it: "
            f"CUDA_HOME=/usr/local/cuda-{driver} make install\n{_WAYS_OUT}"
        )
    known = re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"]).stdout)
    fit = [card for card in cards if not known or card.architecture in known]
    for card in cards:
        # A card that only shows the desktop is often older than the toolkit for the one that computes.
        outdated = card not in fit and int(card.architecture) < max(map(int, known))
        if card not in fit and not (fit and outdated):
            raise Failed(_wrong_generation(nvcc, version, card, known))
    _try_compiler(nvcc, version, fit[0], environment.get("CUDAHOSTCXX", ""))
    return version, fit


def _try_compiler(nvcc: str, version: str, card: Card, host: str) -> None:
    """Compile and link a few lines: minutes earlier than llama.cpp would fail."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cu"
        source.write_text(_TRIAL, encoding="ascii")
        command = [nvcc, f"-arch=sm_{card.architecture}", "-shared", "-Xcompiler=-fPIC"]
        command += ["-ccbin", host] if host else []
        done = run([*command, "-o", str(source) + ".so", str(source), "-lcublas"])
    if done.returncode == 0:
        return
    said = (done.stdout + done.stderr).strip()
    for pattern, advice in _TRIAL_ADVICE.items():
        if re.search(pattern, said):
            raise Failed(advice.format(version=version, nvcc=nvcc) + f"\n{_WAYS_OUT}")
    tail = "\n".join(f"    {line}" for line in said.splitlines()[-8:])
    raise Failed(f"nvcc {version} ({nvcc}) fails on three lines of CUDA:\n{tail}\n{_WAYS_OUT}")


def no_compiler(names: str, driver: str) -> str:
    """What to do about a card without nvcc; `driver` is the newest CUDA version that it runs, or ""."""
    most = f", version {driver} or older, which is what the driver runs" if driver else ""
    package = f"cuda-toolkit-{'-'.join(driver.split('.')[:2])}" if driver else "cuda-toolkit"
    return (
        f"This machine has an NVIDIA card ({names}), but no CUDA compiler: nvcc is neither on PATH nor "
        "in CUDA_HOME, /usr/local/cuda*/bin or /opt/cuda/bin. Choose one:\n"
        f"  - install the CUDA toolkit{most}, from https://developer.nvidia.com/cuda-downloads\n"
        f"    (Debian, Ubuntu, with NVIDIA's repository: sudo apt-get install {package}), then run\n"
        "    make install again; where it lies elsewhere: CUDA_HOME=/path/to/cuda make install\n"
        "  - use the container, which brings its own: docker compose up --build (docs/gpu.md)\n"
        "  - build for the CPU, which is many times slower: CPU=1 make install"
    )


def _wrong_generation(nvcc: str, version: str, card: Card, known: list[str]) -> str:
    numbers = sorted(map(int, known))
    if int(card.architecture) > numbers[-1]:
        problem = "is too old for it: install a newer CUDA toolkit"
    else:
        problem = "no longer compiles for it: install an older CUDA toolkit"
    return (
        f"{card.name} has compute capability {card.capability}; nvcc {version} ({nvcc}), which knows "
        f"{numbers[0]} to {numbers[-1]}, {problem}, and name it with CUDA_HOME if there are several.\n"
        f"{_WAYS_OUT}"
    )


def _major(version: str) -> int:
    return int(version.split(".", maxsplit=1)[0])


def run(command: list[str], patience: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end; one that cannot start counts as failed, one that hangs has status HANGS."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        # One that waits within a driver that hangs cannot even be killed: do not wait for it too.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        said = f"{command[0]} did not answer within {patience:g} s"
        return subprocess.CompletedProcess(command, HANGS, "", said)
    return subprocess.CompletedProcess(command, process.returncode, out, err)
