"""What `scripts/install.py` shows: one live line per step, a full log, advice when a step fails."""

from __future__ import annotations

import collections
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Mapping, TextIO

TAIL_LINES = 25
NINJA = re.compile(r"^\s*\[(\d+)/(\d+)\]")
PHASES = (
    (re.compile(r"^\s*Downloading ([\w.]+)-\d\S* \((.*?)\)"), r"downloading \1, \2"),
    (re.compile(r"\*\*\* Configuring CMake"), "configuring"),
    (re.compile(r"\*\*\* Building project"), "compiling"),
    (re.compile(r"\*\*\* Installing project"), "packing"),
    (re.compile(r"^\s*Installing collected packages"), "installing"),
)
# Patterns in the log's tail, and what to do about them; {compiler} is filled in.
ADVICE = {
    r"No CMAKE_C(XX)?_COMPILER|compiler.* is not able to compile|cc1plus.*No such file": """\
The C++ compiler is missing or broken.
{compiler}""",
    r"Killed signal terminated|virtual memory exhausted|out of memory|std::bad_alloc": """\
The compiler ran out of memory. Compile one file at a time:
    CMAKE_BUILD_PARALLEL_LEVEL=1 make install""",
    r"No space left on device": """\
The disk is full: compiling needs about 2 GB where temporary files go (TMPDIR), and .venv 1 GB.""",
    r"unsupported (GNU|clang) version": """\
nvcc does not take this C++ compiler, which is too new for it. Install an older one and name it:
    CUDAHOSTCXX=g++-13 make install""",
    r"libcuda\.so\.1: cannot open|llama.cpp finds no CUDA card": """\
llama.cpp was built for CUDA, but the NVIDIA driver is not usable here: nvidia-smi must list a card.
For a build without it: CPU=1 make install""",
    r"CUDA Toolkit not found|Could NOT find CUDA|Failed to find nvcc|CMAKE_CUDA_COMPILER": """\
CMAKE_ARGS asks for CUDA, and the CUDA toolkit (nvcc) was not found. Install it and put nvcc on
PATH, or build for the CPU: CMAKE_ARGS= CPU=1 make install""",
    r"DO NOT MATCH THE HASHES": """\
A downloaded file is not the one that was pinned. Try again; if it stays so, the package index
serves something else than requirements.lock names, and it must not be installed.""",
    r"Temporary failure in name|Max retries exceeded|ConnectionError|Timeout|SSLError": """\
The package index could not be reached: check the network, the proxy and `pip config list`.""",
    r"No matching distribution found|Could not find a version": """\
The package index has no file that suits this Python and platform. The locks are made for
Python 3.11 and newer on x86-64 and arm64, Linux and macOS.""",
}


class Failed(Exception):
    """A step did not work; the text says what to do about it."""


def packages_hint(*debian: str) -> str:
    """What to type to install what is missing, on the system at hand."""
    if shutil.which("apt-get"):
        return f"Install it with:\n    sudo apt-get install {' '.join(debian)}"
    if shutil.which("dnf"):
        return "Install it with:\n    sudo dnf install gcc-c++ make python3.12"
    if sys.platform == "darwin":
        return "Install it with:\n    xcode-select --install\n    brew install python@3.12"
    return f"Install what your system calls (Debian's names): {' '.join(debian)}"


def advice_for(log: str) -> str:
    """What to do about the failure that `log` ends in; empty when it is none that is known."""
    for pattern, text in ADVICE.items():
        if re.search(pattern, log):
            return text.format(compiler=packages_hint("g++", "make"))
    return ""


def clock(seconds: float) -> str:
    """`seconds` as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Reporter:
    """Prints steps: one line rewritten in place on a terminal, else a line every 5 percent."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._title = ""
        self._phase = ""
        self._began = 0.0
        self._counting_since = 0.0
        self._count = (0, 0)
        self._shown_percent = -1

    def start(self, title: str) -> None:
        """Begin the step called `title`."""
        self._title, self._phase, self._began = title, "", time.monotonic()
        self._count, self._shown_percent = (0, 0), -1
        self._print(f"{title} ...")

    def feed(self, line: str) -> None:
        """Take one line of the step's output and show what it says about progress."""
        counted = NINJA.match(line)
        if counted:
            if not self._count[1]:
                self._counting_since = time.monotonic()
            self._count = (int(counted.group(1)), int(counted.group(2)))
            self._show_count()
            return
        for pattern, text in PHASES:
            found = pattern.search(line)
            if found:
                self._phase = found.expand(text) if found.groups() else text
                self._count = (0, 0)
                if not self._live:
                    self._print(f"  {self._phase}")
                return

    def tick(self) -> None:
        """Refresh the elapsed time of a live line."""
        if self._live:
            self._print(self._status())

    def finish(self) -> None:
        """End the step."""
        self._print(f"{self._title}: done in {clock(time.monotonic() - self._began)}", last=True)

    def note(self, text: str) -> None:
        """Print a line beside the steps."""
        self._print(text, last=True)

    done = note

    def _show_count(self) -> None:
        done, total = self._count
        percent = 100 * done // max(total, 1)
        if self._live:
            self._print(self._status())
        elif percent // 5 != self._shown_percent // 5 or done == total:
            if percent != self._shown_percent:
                self._print("  " + self._status())
            self._shown_percent = percent

    def _status(self) -> str:
        now = time.monotonic()
        elapsed = clock(now - self._began)
        done, total = self._count
        if not total:
            return f"{self._title}: {self._phase or 'working'}, {elapsed}"
        # The first files say nothing about the pace.
        left = clock((now - self._counting_since) * (total - done) / done) if done > 4 else "?"
        bar = "#" * (20 * done // total)
        return f"compiling [{bar:<20}] {done}/{total}  {elapsed} elapsed, about {left} left"

    def _print(self, text: str, *, last: bool = False) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._out.write("\r\x1b[K" + text[:width] + ("\n" if last else ""))
        else:
            self._out.write(text + "\n")
        self._out.flush()


def run_logged(
    reporter: Reporter,
    title: str,
    command: list[str],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command` as a step, its output appended to `log`. Raises Failed with the log's tail."""
    reporter.start(title)
    tail: collections.deque[str] = collections.deque(maxlen=400)
    with log.open("ab") as sink:
        sink.write(f"\n$ {' '.join(command)}\n".encode())
        sink.flush()
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                _pump(process, reporter, tail, sink.fileno())
            except BaseException:
                process.terminate()
                raise
            code = process.wait()
    if code != 0:
        lines = list(tail)
        shown = "\n".join(f"    {line}" for line in lines[-TAIL_LINES:])
        advice = advice_for("\n".join(lines))
        raise Failed(
            f"{title} failed (exit status {code}). The end of {log}:\n{shown}\n"
            + (f"\n{advice}" if advice else "")
        )
    reporter.finish()


def _pump(
    process: subprocess.Popen[bytes], reporter: Reporter, tail: collections.deque[str], sink: int
) -> None:
    """Copy the process's output to the log, the tail and the reporter until it ends."""
    if process.stdout is None:  # pragma: no cover - Popen was given a pipe
        return
    source, pending = process.stdout.fileno(), b""
    while True:
        if not select.select([source], [], [], 1.0)[0]:
            reporter.tick()
            continue
        chunk = os.read(source, 65536)
        if not chunk:
            return
        os.write(sink, chunk)
        *lines, pending = (pending + chunk).split(b"\n")
        for raw in lines:
            line = raw.decode("utf-8", "replace").rstrip()
            tail.append(line)
            reporter.feed(line)
