"""What llama.cpp is built for: looks for NVIDIA cards and a CUDA compiler, decides, and says why.

Like scripts/install.py: standard library only, nothing newer than Python 3.7.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping

from install_cuda import HANGS, Card, check_compiler, no_compiler, run
from install_output import Failed

CUDA_ARGS = (
    "-DGGML_CUDA=ON",
    # The card's own number, never `native`: that is garbage where no card is visible while compiling.
    "-DCMAKE_CUDA_ARCHITECTURES={architectures}",
    # What would be downloaded, or is not used here.
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_CUDA_NCCL=OFF",
)
PATIENCE = 60.0
"""Seconds for the driver to answer; many cards that were asleep take a dozen."""
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Build:
    """One way to build llama.cpp."""

    cmake_args: str
    reason: str
    """A sentence for the user: what is built, and why."""
    asked: bool = False
    """Whether the user chose it; such a choice is remembered, the automatic one is made anew."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether it is for NVIDIA cards."""
        return "GGML_CUDA=ON" in self.cmake_args.upper()


def asked_build(environment: Mapping[str, str], remembered: Mapping[str, object]) -> Build | None:
    """Return what the user asks for now, or asked for last time; None: look at the machine.

    Raises Failed when CPU and CMAKE_ARGS contradict each other, or CPU is neither yes nor no.
    """
    cpu = environment.get("CPU", "").lower()
    if cpu not in _YES + _NO:
        raise Failed(
            f"CPU={environment['CPU']} is neither 1 (build for the CPU) nor 0 (look again)."
        )
    own = environment.get("CMAKE_ARGS")
    if own is not None:
        build = Build(own, f"llama.cpp as CMAKE_ARGS says: {own or 'nothing'}", asked=True)
        if cpu in _YES and build.cuda:
            raise Failed("CPU=1 and CMAKE_ARGS with GGML_CUDA=ON contradict each other: drop one.")
        return build
    if cpu in _YES:
        return Build("", "llama.cpp for the CPU, because CPU=1 says so", asked=True)
    if "CPU" in environment:
        return None
    last = str(remembered.get("cmake_args", ""))
    # Stamps without "asked" are from when only the user could set CMAKE_ARGS.
    if not remembered.get("asked", bool(last)):
        return None
    kept = last or "for the CPU (CPU=1)"
    return Build(last, f"llama.cpp as asked for last time: {kept}; CPU=0 looks again", asked=True)


class Machine:
    """What is in this machine; tests point `root` and the environment at folders of their own."""

    def __init__(self, environment: Mapping[str, str], root: Path = Path("/")) -> None:
        self._environment = environment
        self._root = root
        self._path = environment.get("PATH", "")

    def traces(self) -> list[str]:
        """Files that a driver with a card makes: looked up in no time, unlike asking the driver."""
        found: list[Path] = []
        for folder, pattern in (
            ("proc/driver/nvidia/gpus", "*"),
            ("dev", "nvidia[0-9]*"),
            ("dev", "dxg"),
        ):
            found += (self._root / folder).glob(pattern)
        return sorted(str(path.relative_to(self._root)) for path in found)

    def choose(self) -> Build:
        """Decide from what is there. Raises Failed with what to do where a card could not be used."""
        if sys.platform == "darwin":
            return Build(
                "", "llama.cpp with its defaults for macOS, which is Metal on Apple silicon"
            )
        cards, driver = self._ask_driver()
        if not cards:
            said = f" (nvidia-smi: {driver})" if driver else ""
            return Build("", f"llama.cpp for the CPU: {self._no_card()}{said}")
        names = ", ".join(card.name for card in cards)
        nvcc = self.nvcc()
        if nvcc is None:
            raise Failed(no_compiler(names, driver))
        version, fit = check_compiler(nvcc, cards, driver, self._environment)
        architectures = sorted({card.architecture for card in fit}, key=int)
        arguments = " ".join(CUDA_ARGS).format(architectures=";".join(architectures))
        path = f"{Path(nvcc).parent}:{self._path}"
        names = ", ".join(card.name for card in fit)
        left_out = [f"{card.name} ({card.capability})" for card in cards if card not in fit]
        without = f". Not for {', '.join(left_out)}, too old for this nvcc" if left_out else ""
        return Build(
            arguments,
            f"llama.cpp for CUDA: {names}, compute capability "
            f"{', '.join(sorted({card.capability for card in fit}))}; nvcc {version}, {nvcc}{without}",
            environment={"CUDACXX": nvcc, "PATH": path},
        )

    def nvcc(self) -> str | None:
        """Path of the CUDA compiler: CUDACXX, PATH, CUDA_HOME, then the usual folders, newest first."""
        named = self._environment.get("CUDACXX", "")
        if named:
            found = shutil.which(named, path=self._path)
            if found is None:
                raise Failed(f"CUDACXX names {named}, which is not there or cannot be run.")
            return found
        folders = [self._environment.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
        places = [str(Path(folder) / "bin") for folder in folders if folder]
        local = self._root / "usr" / "local"
        versions = sorted(local.glob("cuda-*"), key=_version_of, reverse=True)
        places += [str(path / "bin") for path in (local / "cuda", *versions)]
        places.append(str(self._root / "opt" / "cuda" / "bin"))
        for path in (self._path, *places):
            found = shutil.which("nvcc", path=path) if path else None
            if found:
                return found
        return None

    def _ask_driver(self) -> tuple[list[Card], str]:
        """Cards, and the newest CUDA version that the driver runs ("" when it does not say).

        Without cards: none, and what the driver's tool says instead.
        """
        windows = str(self._root / "usr" / "lib" / "wsl" / "lib")
        places = f"{self._path}:{windows}"
        tool = shutil.which("nvidia-smi", path=places)
        traces = [trace for trace in self.traces() if trace != "dev/dxg"]
        if tool is None:
            if traces:
                raise Failed(
                    f"There is an NVIDIA card ({traces[0]}), but no nvidia-smi to ask about it. Put the "
                    "driver's nvidia-smi on PATH, or build for the CPU: CPU=1 make install"
                )
            return [], ""
        asked = run([tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"], PATIENCE)
        if asked.returncode == 0:
            cards = [_card(line) for line in asked.stdout.splitlines() if line.strip()]
            shown = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", run([tool], PATIENCE).stdout)
            return cards, shown.group(1) if shown else ""
        said = (asked.stdout + asked.stderr).strip()
        if "compute_cap" in said:
            raise Failed(
                "The NVIDIA driver is too old to tell its card's compute capability (it needs 510 or "
                "newer). Update the driver, or name the architecture yourself: CMAKE_ARGS="
                f'"{" ".join(CUDA_ARGS).format(architectures="89")}" make install'
            )
        # Windows puts its tool there together with its driver, so there is a card.
        if not traces and tool.startswith(windows) and "No devices" not in said:
            traces = ["Windows' own, by /dev/dxg"]
        if traces or asked.returncode == HANGS:
            card = f" ({traces[0]})" if traces else ""
            raise Failed(
                f"There is an NVIDIA card{card}, but its driver does not answer:\n    {said}\n"
                "Mend the driver (often: reboot after an update; on Windows: update it, then wsl --shutdown), "
                "or build for the CPU: CPU=1 make install"
            )
        return [], said.splitlines()[0] if said else ""

    def _no_card(self) -> str:
        """Why there is no card to build for."""
        for device in (self._root / "sys" / "bus" / "pci" / "devices").glob("*"):
            try:
                vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            except OSError:
                continue
            if vendor == "0x10de" and kind.startswith("0x03"):
                return (
                    f"the NVIDIA card at {device.name} has no NVIDIA driver; install one and run "
                    "make install again to use it"
                )
        return "no NVIDIA card with a driver was found"


def _card(line: str) -> Card:
    """Read one line of nvidia-smi's table. Raises Failed for one that makes no sense."""
    name, _, capability = (part.strip() for part in line.rpartition(","))
    if not re.fullmatch(r"\d+\.\d", capability):
        raise Failed(
            f"nvidia-smi gives {capability!r} as the compute capability of {name or 'a card'}. Name the "
            f'architecture yourself: CMAKE_ARGS="{" ".join(CUDA_ARGS).format(architectures="89")}" '
            "make install"
        )
    return Card(name, capability)


def _version_of(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path.name)]
