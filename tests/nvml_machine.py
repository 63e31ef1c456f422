"""A machine with NVIDIA cards: a fake libnvidia-ml that is compiled here, and the memory behind it."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_name("fake_nvml.c")

DRIVER_NOT_LOADED, LOST, NO_PERMISSION = 9, 15, 4


class Card(ctypes.Structure):
    """One card. Write its fields, and the library answers so."""

    _fields_ = (
        ("bus_id", ctypes.c_char * 32),
        ("name", ctypes.c_char * 32),
        ("total", ctypes.c_uint64),
        ("others", ctypes.c_uint64),
        ("own", ctypes.c_uint64),
        ("error", ctypes.c_uint32),
        ("processes_error", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("divided", ctypes.c_uint32),
    )


class _Layout(ctypes.Structure):
    _fields_ = (
        ("error", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("boot", ctypes.c_uint32),
        ("sessions", ctypes.c_uint32),
        ("reads", ctypes.c_uint32),
        ("hang", ctypes.c_uint32),
        ("cards", Card * 4),
    )


def compile_library(folder: Path) -> Path:
    """Build it under the name that pynvml opens. Raises with the compiler's words."""
    target = folder / "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    built = subprocess.run(
        [*command, "-o", str(target), str(SOURCE)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return target


class Machine:
    """Memory that is shared with the library, in this process or another."""

    def __init__(self, path: Path, *totals: int) -> None:
        """`totals`: bytes of each card; their buses are 3a, 3b, …"""
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_Layout)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.state = _Layout.from_buffer(self._memory)
        self.state.count = len(totals)
        for index, total in enumerate(totals):
            card = self.state.cards[index]
            card.bus_id = f"00000000:{0x3A + index:02X}:00.0".encode()
            card.name = f"Fake {index}".encode()
            card.total = total
        self.cards: list[Card] = [self.state.cards[index] for index in range(len(totals))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.state.hang = 0

    def lose_driver(self) -> None:
        self.state.error = DRIVER_NOT_LOADED

    def bring_driver_back(self) -> None:
        """As after a reload: nothing that was opened before is good any more."""
        self.state.boot += 1
        self.state.sessions = 0
        self.state.error = 0

    def own(self, index: int, size: int, *, told: bool = True) -> None:
        """Let this very process have so much; `told`: the driver knows it by its number."""
        self.cards[index].own = size
        self.cards[index].pid = os.getpid() if told else 0
