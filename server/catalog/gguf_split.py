"""Models split over several files, `NAME-00001-of-00003.gguf`: all parts found, and held against each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from server.catalog.gguf_header import GgufHeader, read_header
from server.core.errors import ModelFileError

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_MOST_PARTS = 1000


def read_parts(path: Path) -> tuple[GgufHeader, ...]:
    """Read the headers of a model: one, or of all its parts, given the first.

    llama.cpp finds the other parts by their names too. Raises `ModelFileError` for parts that are
    missing, in the wrong order, or of another model.
    """
    return gather(read_header(path), lambda name: _read_beside(path, name))


def gather(first: GgufHeader, read: Callable[[str], GgufHeader]) -> tuple[GgufHeader, ...]:
    """Read the parts that belong to `first`; `read` takes the name of a file beside it."""
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= _MOST_PARTS:
        raise ModelFileError(
            f"{first.path} is not sound: it claims {count!r} parts. Download it again."
        )
    if count <= 1:
        return (first,)
    names = part_names(first, count)
    parts = (first, *(read(name) for name in names[1:]))
    _check(parts, count)
    return parts


def part_paths(path: Path) -> tuple[Path, ...]:
    """Return the files of a model by their names alone: `path`, or all parts if it is the first of several."""
    found = _NAME.fullmatch(path.name)
    if found is None or int(found["number"]) != 1:
        return (path,)
    count = min(int(found["count"]), _MOST_PARTS)
    names = (f"{found['stem']}-{index + 1:05}-of-{count:05}.gguf" for index in range(count))
    return tuple(path.parent / name for name in names)


def part_names(first: GgufHeader, count: int) -> tuple[str, ...]:
    """Name all parts, given the first. Raises `ModelFileError` when its name does not tell."""
    number = first.metadata.get("split.no", 0)
    found = _NAME.fullmatch(first.path.name)
    if found is None or int(found["count"]) != count:
        raise ModelFileError(
            f"{first.path} is one of {count} parts, and llama.cpp finds the others by its name: call it "
            f"NAME-00001-of-{count:05}.gguf, as it was published."
        )
    stem = found["stem"]
    names = tuple(f"{stem}-{index + 1:05}-of-{count:05}.gguf" for index in range(count))
    if number != 0 or int(found["number"]) != 1:
        raise ModelFileError(f"{first.path} is not the first part of its model: give {names[0]}.")
    return names


def _read_beside(first: Path, name: str) -> GgufHeader:
    path = first.parent / name
    if not path.exists():
        raise ModelFileError(
            f"{path} is missing: {first.name} is split, and all its parts must lie in one folder. Download it again."
        )
    return read_header(path)


def _check(parts: Sequence[GgufHeader], count: int) -> None:
    for index, part in enumerate(parts):
        claimed = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if claimed != (index, count):
            raise ModelFileError(
                f"{part.path} calls itself part {claimed[0]} of {claimed[1]}, not {index} of {count}: it belongs to "
                "another model, or was renamed. Download it again."
            )
    said = parts[0].metadata.get("split.tensors.count")
    held = sum(len(part.tensors) for part in parts)
    if said is not None and said != held:
        raise ModelFileError(
            f"{parts[0].path} and its parts hold {held} tensors, but it claims {said}. Download all parts again."
        )
