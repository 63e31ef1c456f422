"""Which files of a repository make up one model in one quantization, told from their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from server.catalog.references import QUANT, canonical_quant
from server.core.errors import ModelFileError

_SPLIT = re.compile(
    r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>(?!00000)\d{5})(?P<suffix>\.gguf)$", re.IGNORECASE
)
# The last one in a name counts: Qwen3-Q-Star-IQ4_XS is IQ4_XS.
_QUANT_IN_NAME = re.compile(rf"(?<![A-Z0-9])({QUANT})(?![A-Z0-9_])")
_NOT_MODELS = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_BESIDE_MODELS = re.compile(
    r"(?<![A-Z])(vocab|tokenizer|lora|adapter|draft)(?![A-Z])", re.IGNORECASE
)
"""What a name may say that is not the model itself; a merged model may say it too."""
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

    Adapters, vocabularies and draft models are left out where there is anything else.
    Raises `ModelFileError` for a repository without GGUF files, naming the formats that it has.
    """
    found = every_candidate(listing)
    return [c for c in found if not _BESIDE_MODELS.search(c.files[0].path)] or found


def every_candidate(listing: Listing) -> list[Candidate]:
    """Return what can be asked for by its file's name, as `candidates` does."""
    groups: dict[tuple[str, str], list[HubFile]] = {}
    for file in listing.files:
        if file.path.lower().endswith(".gguf") and not _NOT_MODELS.search(file.path):
            split = _SPLIT.match(file.path)
            # The same model may lie there split in two and split in three.
            key = (split["stem"], split["parts"]) if split else (file.path, "")
            groups.setdefault(key, []).append(file)
    if not groups:
        raise ModelFileError(_no_gguf(listing))
    found = [_candidate(stem, files, listing) for (stem, _), files in groups.items()]
    return sorted(found, key=lambda candidate: (-candidate.size, candidate.files[0].path))


def quant_of(path: str) -> str | None:
    """Return the quantization that a file's name tells, None when it tells none."""
    split = _SPLIT.match(path)
    stem = split["stem"] if split else _without_suffix(path)
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
    tail = f"-of-{split['parts']}{split['suffix']}"
    return tuple(f"{split['stem']}-{i:05d}{tail}" for i in range(1, parts + 1))


def parts_of(target: Path) -> list[Path]:
    """Return the partial downloads of a file, whatever version they are of."""
    try:
        there = list(target.parent.iterdir())
    except OSError:
        return []
    return [p for p in there if p.name.startswith(f"{target.name}.") and p.name.endswith(".part")]


def is_whole_upload(candidate: Candidate) -> bool:
    """Whether every part is there, with a checksum."""
    there = [file.path for file in candidate.files]
    known = all(file.sha256 is not None for file in candidate.files)
    return known and list(split_siblings(there[0])) == there


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
    name = _without_suffix(PurePosixPath(stem).name)
    return Candidate(
        quant_of(files[0].path) or canonical_quant(name),
        sum(file.size for file in files),
        tuple(files),
        listing.repo,
        listing.commit,
    )


def _without_suffix(path: str) -> str:
    return path[: -len(".gguf")] if path.lower().endswith(".gguf") else path


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
