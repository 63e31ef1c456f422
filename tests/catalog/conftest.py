from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.hub_downloads import Pulls
from tests.catalog.hub_server import HubServer

STRING, ARRAY, UINT32, INT32 = 8, 9, 4, 5
F32 = 0


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def strings(values: Sequence[str]) -> bytes:
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


def tensor(name: str, dimensions: Sequence[int], kind: int = F32, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dimensions))
        + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        + struct.pack("<IQ", kind, offset)
    )


SOUND: dict[str, bytes] = {
    "general.architecture": entry("general.architecture", STRING, text("qwen3")),
    "qwen3.block_count": entry("qwen3.block_count", UINT32, struct.pack("<I", 2)),
    "tokenizer.ggml.model": entry("tokenizer.ggml.model", STRING, text("gpt2")),
    "tokenizer.ggml.tokens": entry("tokenizer.ggml.tokens", ARRAY, strings(["a", "b", "é"])),
    "tokenizer.ggml.token_type": entry(
        "tokenizer.ggml.token_type", ARRAY, struct.pack("<IQ3i", INT32, 3, 1, 2, 3)
    ),
    "tokenizer.ggml.eos_token_id": entry(
        "tokenizer.ggml.eos_token_id", UINT32, struct.pack("<I", 2)
    ),
}
TENSORS = (tensor("token_embd.weight", (4, 3)), tensor("output_norm.weight", (4,), offset=64))


def header(
    entries: Sequence[bytes] = tuple(SOUND.values()),
    tensors: Sequence[bytes] = TENSORS,
    *,
    version: int = 3,
    n_values: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    counts = struct.pack(
        "<QQ",
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_values is None else n_values,
    )
    made = b"GGUF" + struct.pack("<I", version) + counts + b"".join(entries) + b"".join(tensors)
    return made + bytes(-len(made) % 32)


def gguf(entries: Sequence[bytes] = tuple(SOUND.values()), **changes: Any) -> bytes:
    """A whole small file: header, 48 bytes, padding, 16 bytes."""
    return header(entries, **changes) + bytes(64 + 16)


@pytest.fixture
def write(tmp_path) -> Callable[[bytes], Path]:
    def write_bytes(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the files of the repository o/r arrive."""
    return tmp_path / "models" / "o" / "r"


@pytest.fixture
def pulls(hub: HubServer, tmp_path: Path) -> Pulls:
    """Pulls from the module's own `hub`."""
    return Pulls(hub, tmp_path / "models")
