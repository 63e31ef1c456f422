"""Reading a GGUF's bytes: a cursor that trusts no count further than the file is long."""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from server.catalog.gguf_types import SCALARS, MetadataValue, ValueType
from server.core.errors import ModelFileError

_FEW = 4096
"""Numbers of an array that are kept when it is stepped over."""


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """An array in the file that was stepped over."""

    value_type: ValueType
    count: int
    position: int
    """Byte offset of its first element in the file."""
    values: tuple[int | float | bool, ...] | None = None
    """Its elements, where they are few numbers: one per layer, for instance."""


class Incomplete(Exception):
    """The bytes at hand end before the header does; the file itself goes on."""

    def __init__(self, needed: int) -> None:
        """`needed`: bytes from the start of the file, as far as is known yet."""
        super().__init__(f"{needed} bytes are needed")
        self.needed = needed


class Cursor:
    """Reads forward through bytes; every step is checked against the end of the file.

    `data` may be the beginning of a file of `end` bytes: `Incomplete` then asks for more.
    """

    def __init__(
        self, data: mmap.mmap | bytes, path: Path, position: int = 0, end: int | None = None
    ) -> None:
        self.data = data
        self.path = path
        self.position = position
        self.end = len(data) if end is None else end
        self.held = len(data)

    def fail(self, reason: str) -> ModelFileError:
        """Make the error for a corrupt file."""
        return ModelFileError(f"{self.path} is not a sound GGUF: {reason}. Download it again.")

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes; return where they start."""
        start = self.position
        if count > self.end - start:
            message = f"{what} needs {count} bytes at offset {start}, but the file ends after {self.end - start} more"
            raise self.fail(message)
        if start + count > self.held:
            raise Incomplete(start + count)
        self.position = start + count
        return start

    def scalar(self, kind: ValueType) -> int | float | bool:
        """Read one number or truth value."""
        layout = SCALARS[kind]
        value: int | float | bool = layout.unpack_from(
            self.data, self.take(layout.size, "a value")
        )[0]
        return value

    def unsigned(self, kind: ValueType) -> int:
        """Read a count."""
        return int(self.scalar(kind))

    def raw_text(self, what: str) -> bytes:
        """Read a string's bytes."""
        length = self.unsigned(ValueType.UINT64)
        start = self.take(length, what)
        return self.data[start : start + length]

    def text(self, what: str) -> str:
        """Read a string; what is not UTF-8 is replaced."""
        return self.raw_text(what).decode("utf-8", "replace")

    def kind(self) -> ValueType:
        """Read a value type."""
        number = self.unsigned(ValueType.UINT32)
        try:
            return ValueType(number)
        except ValueError as error:
            raise self.fail(f"value type {number} does not exist") from error

    def value(self) -> MetadataValue | ArrayRef:
        """Read a type and a value of it; arrays are stepped over."""
        kind = self.kind()
        if kind is ValueType.STRING:
            return self.text("a metadata string")
        if kind is ValueType.ARRAY:
            return self.array()
        return self.scalar(kind)

    def array(self) -> ArrayRef:
        """Step over an array."""
        kind = self.kind()
        if kind is ValueType.ARRAY:
            raise self.fail("it holds an array of arrays, which no model file uses")
        count = self.unsigned(ValueType.UINT64)
        position = self.position
        if kind is ValueType.STRING:
            self._step_over_strings(count)
            return ArrayRef(kind, count, position)
        self.take(count * SCALARS[kind].size, f"an array of {count} values")
        if count > _FEW:
            return ArrayRef(kind, count, position)
        layout = struct.Struct(f"<{count}{SCALARS[kind].format[-1]}")
        return ArrayRef(kind, count, position, layout.unpack_from(self.data, position))

    def _step_over_strings(self, count: int) -> None:
        # Each string has at least its 8-byte length: a lying count fails here, not after hours of
        # looping.
        if count * 8 > self.end - self.position:
            raise self.fail(
                f"an array claims {count} strings, more than the rest of the file can hold"
            )
        read, data, position, held = (
            struct.Struct("<Q").unpack_from,
            self.data,
            self.position,
            self.held,
        )
        for _ in range(count):
            if position + 8 > held:
                self._end_of_strings(position + 8)
            position += 8 + read(data, position)[0]
        if position > held:
            self._end_of_strings(position)
        self.position = position

    def _end_of_strings(self, needed: int) -> NoReturn:
        if needed <= self.end:
            raise Incomplete(needed)
        raise self.fail("a list of strings runs past the end of the file")

    def elements(self, kind: ValueType, count: int) -> Iterator[Any]:
        """Read `count` elements from here on."""
        if kind is ValueType.STRING:
            for _ in range(count):
                yield self.text("a string")
            return
        layout = SCALARS[kind]
        start = self.take(count * layout.size, "an array")
        for (value,) in layout.iter_unpack(self.data[start : start + count * layout.size]):
            yield value


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Give the file's bytes. Raises `ModelFileError` for what cannot be mapped."""
    with _map(path) as data:
        yield data


def _map(path: Path) -> mmap.mmap:
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a directory. Give the path of a .gguf file in it.")
        # Opening a pipe would wait for somebody to write to it.
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} is not a regular file. Give the path of a .gguf file.")
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ModelFileError(f"{path} is empty. Download it again.")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        message = f"{path} does not exist. Give the path of a .gguf file."
        raise ModelFileError(message) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"{path} cannot be read: {reason}.") from error
