"""What the worker tells its supervisor: memory that both map, and that outlives the worker.

One side writes a field, the other reads it; a text that is being written may be read half, no more.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class WorkerState(IntEnum):
    """How far a worker is."""

    STARTING = 0
    """Imports, downloads, plans. Its event loop does not run yet."""
    LOADING = 1
    """Answers, and loads its first model."""
    READY = 2
    STOPPING = 3


class Cause(StrEnum):
    """Why a worker had to be replaced."""

    CRASHED = "crashed"
    """Native code brought a signal upon it."""
    KILLED = "killed"
    """Another signal, from whomever."""
    UNFIT = "unfit"
    """It lived and did not do its work; the supervisor ended it."""
    EXITED = "exited"
    """It ended by itself, or could not be started."""


class _Number(Generic[T]):
    """A field of one number, in `struct`'s form."""

    def __init__(self, offset: int, form: str, kind: type[T]) -> None:
        self._offset, self._struct, self._kind = offset, struct.Struct(form), kind

    def __get__(self, page: Page, _: type[Page]) -> T:
        # `kind` makes a state of a number, and is the identity elsewhere.
        return self._kind(*self._struct.unpack_from(page.memory, self._offset))

    def __set__(self, page: Page, value: T) -> None:
        self._struct.pack_into(page.memory, self._offset, value)


class _Counts:
    """A field of numbers by cause."""

    def __init__(self, offset: int) -> None:
        self._offset, self._struct = offset, struct.Struct(f"{len(Cause)}Q")

    def __get__(self, page: Page, _: type[Page]) -> dict[str, int]:
        numbers = self._struct.unpack_from(page.memory, self._offset)
        return {str(cause): number for cause, number in zip(Cause, numbers, strict=True)}

    def __set__(self, page: Page, value: Mapping[Cause, int]) -> None:
        self._struct.pack_into(page.memory, self._offset, *(value.get(one, 0) for one in Cause))


class _Text:
    """A field of UTF-8, cut to its size."""

    def __init__(self, offset: int, size: int) -> None:
        self._offset, self._size = offset, size

    def __get__(self, page: Page, _: type[Page]) -> str:
        raw: bytes = page.memory[self._offset : self._offset + self._size]
        return raw.partition(b"\0")[0].decode("utf-8", "ignore")

    def __set__(self, page: Page, value: str) -> None:
        raw = value.replace("\0", "").encode("utf-8", "replace")[: self._size - 1]
        page.memory[self._offset : self._offset + self._size] = raw.ljust(self._size, b"\0")


_FRESH = 4096 + 16384
"""Bytes that tell of one worker, the requests that it runs included; what follows outlives it."""


class Page:
    """Maps the file behind a descriptor."""

    SIZE = 65536

    state = _Number(0, "B", WorkerState)
    beats = _Number(8, "Q", int)
    """Counted up by the worker's event loop as long as it turns."""
    progress = _Number(16, "d", float)
    """Of the first model's load, 0 to 1."""
    ready_at = _Number(24, "d", float)
    """Monotonic seconds at which the first model was loaded; 0: not yet."""
    stall_after = _Number(32, "d", float)
    """Seconds after which a loop that stands still is a dead one."""
    reloads = _Number(40, "Q", int)
    """Counted up when the configuration has been read again."""
    gpu_free = _Number(48, "Q", int)
    """Bytes that all cards had free when a worker planned last; a worker writes it for the next."""
    failed = _Number(56, "Q", int)
    """Of `restarts`, those since the last one that was ready."""
    fault = _Text(64, 448)
    """Why only a restart helps; empty: nothing is wrong."""
    reloaded = _Text(512, 512)
    """What became of the last reading of the configuration."""
    last_words = _Text(1024, 1024)
    """What native code said when it aborted."""
    restarts = _Counts(2048)
    """Workers before this one, by what ended them; the supervisor writes it."""
    origins = _Text(49152, 16384)
    """Web pages' origins that may use this server, by spaces; outlives the worker that wrote it."""

    def __init__(self, descriptor: int) -> None:
        """Map it; the descriptor may be closed afterwards."""
        self.memory: Any = mmap.mmap(descriptor, self.SIZE)

    def renew(self, restarts: Mapping[Cause, int], failed: int) -> None:
        """Begin with another worker: forget what the last one told of itself."""
        free = self.gpu_free
        self.memory[:_FRESH] = bytes(_FRESH)
        self.restarts, self.failed, self.gpu_free = restarts, failed, free

    def keep_last_words(self, text: str) -> None:
        """Keep what native code says when it aborts."""
        self.last_words = text

    def close(self) -> None:
        """Unmap it."""
        self.memory.close()


def shared_file(name: str, size: int = 0) -> int:
    """Return a descriptor of a file that exists in memory only, or at least under no name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
