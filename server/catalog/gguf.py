"""Checks of a GGUF before anything is loaded: is it whole, is it a language model, are its parts all there."""

from __future__ import annotations

from pathlib import Path

from server.catalog.gguf_header import GgufHeader, TensorInfo, parse_header, read_header
from server.catalog.gguf_split import read_parts
from server.core.errors import ModelFileError

__all__ = [
    "GgufHeader",
    "TensorInfo",
    "check",
    "check_parts",
    "missing_bytes",
    "parse_header",
    "read_header",
    "read_parts",
]

_NOT_TEXT = {
    "clip": "a vision or audio projector (mmproj), which only accompanies a language model",
    "mmproj": "a projector, which only accompanies a language model",
    **dict.fromkeys(
        (
            "bert",
            "modern-bert",
            "nomic-bert",
            "nomic-bert-moe",
            "neo-bert",
            "jina-bert-v2",
            "jina-bert-v3",
            "eurobert",
        ),
        "an embedding model, which cannot generate text",
    ),
    **dict.fromkeys(("t5", "t5encoder"), "an encoder-decoder model, which this server cannot run"),
    "wavtokenizer-dec": "a speech decoder",
}
_END_TOKENS = ("eos", "eot", "eom")


def check(path: Path) -> GgufHeader:
    """Read the header and refuse files that cannot be served; of a split model all parts.

    Returns the (first) header. Raises `ModelFileError`; loading may still fail later.
    """
    return check_parts(path)[0]


def check_parts(path: Path) -> tuple[GgufHeader, ...]:
    """Do as `check` does, and return the headers of all parts in order."""
    parts = read_parts(path)
    for header in parts:
        _check_complete(header)
    _check_kind(parts[0], has_tensors=any(header.tensors for header in parts))
    _check_tokenizer(parts[0])
    return parts


def missing_bytes(header: GgufHeader) -> int:
    """Return how many bytes of the last tensor the file lacks; nothing or less: it is whole."""
    if not header.tensors:
        return 0
    end = max(tensor.offset + tensor.n_bytes for tensor in header.tensors)
    return header.data_offset + end - header.file_size


def _check_complete(header: GgufHeader) -> None:
    missing = missing_bytes(header)
    if missing > 0:
        message = f"{header.path} is truncated: {missing:,} bytes of its tensors are missing. Download it again."
        raise ModelFileError(message)


def _check_kind(header: GgufHeader, *, has_tensors: bool) -> None:
    architecture = header.architecture
    if not architecture:
        raise ModelFileError(
            f"{header.path} names no architecture (general.architecture), so it is not a model."
        )
    if header.metadata.get("general.type", "model") not in ("model", ""):
        message = (
            f"{header.path} is of type {header.metadata['general.type']!r}, not a model by itself."
        )
        raise ModelFileError(message)
    if architecture in _NOT_TEXT:
        message = f"{header.path} is {_NOT_TEXT[architecture]} ({architecture}). Choose a language model's GGUF."
        raise ModelFileError(message)
    if not has_tensors:
        raise ModelFileError(f"{header.path} holds no tensors: it is a vocabulary, not a model.")


def _check_tokenizer(header: GgufHeader) -> None:
    n_tokens = header.array_length("tokenizer.ggml.tokens")
    if "tokenizer.ggml.model" not in header.metadata or n_tokens == 0:
        message = f"{header.path} has no tokenizer (tokenizer.ggml.*), so it is not a language model's GGUF."
        raise ModelFileError(message)
    for name in _END_TOKENS:
        token = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        # llama.cpp replaces such an id by a default of its own, and answers then never end.
        if isinstance(token, int) and not 0 <= token < n_tokens:
            message = (
                f"{header.path} is not sound: its {name.upper()} token is {token}, but the vocabulary has ids 0 to "
                f"{n_tokens - 1}. Choose another conversion of this model."
            )
            raise ModelFileError(message)
