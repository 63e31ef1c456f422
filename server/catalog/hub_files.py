"""Which files of a repository make up one model in one quantization, told from their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from server.catalog.references import QUANT, canonical_quant
from server.core.errors import ModelFileError

_SPLIT = re.compile(r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$", re.IGNORECASE)
# The last one in a name counts: Qwen3-Q-Star-IQ4_XS is IQ4_XS.
_QUANT_IN_NAME = re.compile(rf"(?<![A-Z0-9])({QUANT})(?![A-Z0-9_])")
_NOT_MODELS = ("mmproj", "imatrix")
_UNQUANTIZED = frozenset({"F16", "BF16", "F32"})


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at one commit."""

    path: str
    """Within the repository, with slashes."""
    size: int
    """Bytes."""
    sha256: str | None
    """Hexadecimal; None for small files that the hub keeps in git itself."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    license: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model file, or all parts of a split one."""

    quant: str
    """In capitals; the file's name where it tells no quantization."""
    size: int
    """Bytes of all parts."""
    files: tuple[HubFile, ...]
    """In order of the parts."""
    repo: str = ""
    commit: str = ""

    @property
    def quantized(self) -> bool:
        """Whether the weights have fewer than 16 bits."""
        return self.quant not in _UNQUANTIZED


def candidates(listing: Listing) -> list[Candidate]:
    """Return the models in `listing`, largest first.

    Raises `ModelFileError` for a repository without GGUF files, naming the formats that it has.
    """
    groups: dict[str, list[HubFile]] = {}
    for file in listing.files:
        name = PurePosixPath(file.path).name
        if name.lower().endswith(".gguf") and not any(n in name.lower() for n in _NOT_MODELS):
            split = _SPLIT.match(file.path)
            groups.setdefault(split["stem"] if split else file.path, []).append(file)
    if not groups:
        raise ModelFileError(_no_gguf(listing))
    found = [_candidate(stem, files, listing) for stem, files in groups.items()]
    return sorted(found, key=lambda candidate: (-candidate.size, candidate.files[0].path))


def quant_of(path: str) -> str | None:
    """Return the quantization that a file's name tells, None when it tells none."""
    split = _SPLIT.match(path)
    stem = split["stem"] if split else path.removesuffix(".gguf")
    found = _QUANT_IN_NAME.findall(PurePosixPath(stem).name.upper())
    # Some publishers name only the folder of the parts after the quantization.
    found = found or _QUANT_IN_NAME.findall(stem.upper())
    return canonical_quant(found[-1]) if found else None


def split_siblings(name: str) -> tuple[str, ...]:
    """Return the names of all parts of a split GGUF; the name alone for a whole one."""
    split = _SPLIT.match(name)
    if split is None:
        return (name,)
    parts = int(split["parts"])
    return tuple(f"{split['stem']}-{i:05d}-of-{split['parts']}.gguf" for i in range(1, parts + 1))


def parts_of(target: Path) -> list[Path]:
    """Return the partial downloads of a file, whatever version they are of."""
    try:
        there = list(target.parent.iterdir())
    except OSError:
        return []
    return [p for p in there if p.name.startswith(f"{target.name}.") and p.name.endswith(".part")]


def check_parts(candidate: Candidate) -> None:
    """Raise `ModelFileError` when a split model lacks a part in the repository."""
    wanted = split_siblings(candidate.files[0].path)
    missing = [name for name in wanted if name not in {file.path for file in candidate.files}]
    if missing:
        raise ModelFileError(
            f"{candidate.repo}: {candidate.quant} lacks {', '.join(missing)}. "
            "Its upload is not complete; choose another quantization."
        )


def _candidate(stem: str, files: list[HubFile], listing: Listing) -> Candidate:
    files = sorted(files, key=lambda file: file.path)
    name = PurePosixPath(stem).name.removesuffix(".gguf")
    return Candidate(
        quant_of(files[0].path) or canonical_quant(name),
        sum(file.size for file in files),
        tuple(files),
        listing.repo,
        listing.commit,
    )


def _no_gguf(listing: Listing) -> str:
    formats = sorted(set(_formats(file.path for file in listing.files)))
    there = f"; it has {', '.join(formats)}" if formats else ""
    return (
        f"{listing.repo} has no GGUF files{there}. "
        f"Look for a repository with GGUF in its name, such as {listing.repo}-GGUF."
    )


def _formats(paths: Iterable[str]) -> Iterable[str]:
    known = {
        ".safetensors": "safetensors weights",
        ".bin": "PyTorch weights",
        ".pt": "PyTorch weights",
        ".pth": "PyTorch weights",
        ".onnx": "ONNX models",
        ".h5": "TensorFlow weights",
        ".msgpack": "Flax weights",
        ".mlmodel": "Core ML models",
    }
    for path in paths:
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in known:
            yield known[suffix]
