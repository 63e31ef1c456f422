"""GGUF headers, read without llama.cpp: metadata and tensor sizes.

The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian. The file is mapped, big arrays are stepped
over and decoded only when asked for, and no count in the file is trusted further than the file is long.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.catalog.gguf_cursor import ArrayRef, Cursor, mapped
from server.catalog.gguf_types import BLOCKS, FOREIGN, MetadataValue, ValueType
from server.core.errors import ModelFileError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 65535


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. `dimensions` as stored: the contiguous one first."""

    name: str
    dimensions: tuple[int, ...]
    type_name: str
    offset: int
    """Bytes from the start of the data section."""
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF says about itself. Arrays in `metadata` are `ArrayRef`s; `array` reads one."""

    path: Path
    version: int
    metadata: Mapping[str, MetadataValue | ArrayRef]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_size: int

    @property
    def architecture(self) -> str:
        """`general.architecture`, empty when missing."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    def integer(self, key: str, default: int = 0) -> int:
        """Read an integer of the architecture: `integer("block_count")` is `qwen3.block_count`."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def array_length(self, key: str) -> int:
        """Elements of an array, 0 when there is none."""
        value = self.metadata.get(key)
        return value.count if isinstance(value, ArrayRef) else 0

    def array(self, key: str) -> list[Any]:
        """Decode an array; empty when there is none.

        Raises `ModelFileError` when the file changed or is corrupt.
        """
        reference = self.metadata.get(key)
        if not isinstance(reference, ArrayRef):
            return []
        if reference.values is not None:
            return list(reference.values)
        with mapped(self.path) as data:
            cursor = Cursor(data, self.path, reference.position)
            return list(cursor.elements(reference.value_type, reference.count))


def read_header(path: Path) -> GgufHeader:
    """Read metadata and tensor table.

    Raises `ModelFileError` that says what is wrong and what to do.
    """
    with mapped(path) as data:
        return parse_header(data, path, len(data))


def parse_header(data: mmap.mmap | bytes, path: Path, file_size: int) -> GgufHeader:
    """Read the header of a file of `file_size` bytes from its first bytes, or from all of them.

    Raises `Incomplete` when the header goes on behind `data`, `ModelFileError` when it is not sound.
    """
    cursor = Cursor(data, path, end=file_size)
    version = _read_preamble(cursor)
    n_tensors = cursor.unsigned(ValueType.UINT64)
    n_values = cursor.unsigned(ValueType.UINT64)
    # The smallest entries: a tensor takes 8 + 4 + 4 + 8 bytes, a value 8 + 4 + 1.
    if n_tensors * 24 + n_values * 13 > cursor.end - cursor.position:
        message = f"it claims {n_tensors} tensors and {n_values} values, more than its {cursor.end} bytes can hold"
        raise cursor.fail(message)
    metadata: dict[str, MetadataValue | ArrayRef] = {}
    for _ in range(n_values):
        key = cursor.text("a key")
        if key in metadata:
            raise cursor.fail(f"the key {key[:80]!r} appears twice")
        metadata[key] = cursor.value()
    tensors = tuple(_read_tensor(cursor) for _ in range(n_tensors))
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if (
        not isinstance(alignment, int)
        or not 1 <= alignment <= 1 << 20
        or alignment & (alignment - 1)
    ):
        raise cursor.fail(f"its alignment is {alignment!r}, which is not a power of two")
    start = -(-cursor.position // alignment) * alignment
    return GgufHeader(path, version, metadata, tensors, start, cursor.end)


def _read_tensor(cursor: Cursor) -> TensorInfo:
    name = cursor.text("a tensor's name")
    n_dimensions = cursor.unsigned(ValueType.UINT32)
    if n_dimensions > _MOST_DIMENSIONS or len(name) > _LONGEST_NAME:
        raise cursor.fail(f"tensor {name[:80]!r} claims {n_dimensions} dimensions")
    dimensions = tuple(cursor.unsigned(ValueType.UINT64) for _ in range(n_dimensions))
    number = cursor.unsigned(ValueType.UINT32)
    offset = cursor.unsigned(ValueType.UINT64)
    if number not in BLOCKS:
        raise cursor.fail(
            f"tensor {name[:80]!r} has type {number}, which this server does not know"
        )
    type_name, block, block_bytes = BLOCKS[number]
    elements = 1
    for dimension in dimensions:
        elements *= dimension
    if dimensions and dimensions[0] % block:
        raise cursor.fail(f"rows of tensor {name[:80]!r} do not divide into blocks of {block}")
    return TensorInfo(name, dimensions, type_name, offset, elements // block * block_bytes)


def _read_preamble(cursor: Cursor) -> int:
    """Check magic and version; return the version."""
    head = cursor.data[: min(16, cursor.end)]
    if head[:4] != _MAGIC:
        raise ModelFileError(
            f"{cursor.path} is not a GGUF: {_recognise(head)}. Give the path of a .gguf file."
        )
    cursor.take(4, "the magic")
    version = cursor.unsigned(ValueType.UINT32)
    if version in _VERSIONS:
        return version
    if int.from_bytes(struct.pack("<I", version), "big") in (1, *_VERSIONS):
        raise ModelFileError(
            f"{cursor.path} is a big-endian GGUF. Choose a little-endian file of this model."
        )
    if version == 1:
        raise ModelFileError(
            f"{cursor.path} is GGUF version 1, which llama.cpp no longer reads. Choose a newer file."
        )
    raise ModelFileError(
        f"{cursor.path} is GGUF version {version}; this server reads {_VERSIONS}. Update the server."
    )


def _recognise(head: bytes) -> str:
    for magic, name in FOREIGN:
        if head.startswith(magic):
            return f"it is {name}"
    # safetensors: a 64-bit length, then JSON.
    if head[8:9] == b"{":
        return (
            "it is a safetensors file; convert it, or look for a repository with GGUF in its name"
        )
    return f"it starts with {head[:4]!r}"
