"""Models as they lie on disk: what is listed, found, shown and removed.

Another process may download or remove something at the same time, so no file need be there that was there just now.
"""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from server.catalog.download_lock import is_held, lock_path
from server.catalog.foreign_stores import Foreign
from server.catalog.hub_files import parts_of, quant_of, split_siblings
from server.catalog.library_manifest import SUFFIX, Manifest, manifest_path


@dataclass(frozen=True, slots=True)
class Entry:
    """One model on this machine."""

    name: str
    quant: str | None
    size: int
    """Bytes on disk, all parts."""
    source: str
    """`onegpu` (pulled), `file` (put there by hand), `Ollama`, `hub cache`."""
    modified: float
    """Seconds since the Unix epoch."""
    path: Path
    """What to open; the first part of a split one."""
    files: tuple[Path, ...]
    problem: str | None = None
    """Why it cannot be served; None when it can."""
    manifest: Manifest | None = None

    @property
    def ours(self) -> bool:
        """Whether it lies in the models folder, so that `remove` may touch it."""
        return self.source in ("onegpu", "file")


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Return the files under `folder` whose name ends with `suffix` in any case, linked folders included."""
    seen: set[tuple[int, int]] = set()
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        try:
            status = Path(root).stat()
        except OSError:
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link in a circle
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [Path(root, name) for name in names if name.lower().endswith(suffix)]
    return sorted(found)


def size_of(path: Path) -> int | None:
    """Return a file's bytes; None when there is no such file."""
    status = _status(path)
    return status.st_size if status and stat.S_ISREG(status.st_mode) else None


def pulled_entry(folder: Path, manifest: Manifest) -> Entry:
    """Return the entry of a model that was pulled, or begun, into `folder`."""
    files = tuple(folder / file.name for file in manifest.files)
    sizes = [size_of(path) for path in files]
    there = sum(size or 0 for size in [*sizes, *map(size_of, leftovers(files))])
    problem = None
    again = f"onegpu pull {shlex.quote(manifest.requested)}"
    if not manifest.complete:
        total = sum(file.size for file in manifest.files)
        share = f"{min(100 * there // max(total, 1), 100)} % there"
        problem = f"not complete ({share}); go on with: {again}"
        if is_held(lock_path(files[0])):
            problem = f"being downloaded now ({share})"
    elif sizes != [file.size for file in manifest.files]:
        problem = f"not the size that was verified; get it again with: {again}"
    return Entry(
        manifest.name,
        manifest.quant,
        there,
        "onegpu",
        _modified(manifest_path(files[0])),
        files[0],
        files,
        problem,
        manifest,
    )


def damaged_entry(manifest: Path, problem: str) -> Entry:
    """Return the entry of a model whose manifest cannot be read."""
    path = manifest.with_name(manifest.name[: -len(SUFFIX)])
    quant, size = quant_of(path.name), size_of(path) or 0
    return Entry(str(path), quant, size, "onegpu", _modified(manifest), path, (path,), problem)


def file_entry(path: Path, name: str) -> Entry:
    """Return the entry of a file without a manifest, with all parts that its name tells of."""
    files = tuple(path.with_name(part) for part in split_siblings(path.name))
    there = [size for size in map(size_of, files) if size is not None]
    missing = len(files) - len(there)
    problem = f"{missing} of {len(files)} parts missing" if missing else None
    return Entry(
        name, quant_of(path.name), sum(there), "file", _modified(path), path, files, problem
    )


def foreign_entry(foreign: Foreign) -> Entry:
    """Return the entry of a model in another program's store."""
    return Entry(
        foreign.name,
        foreign.quant,
        foreign.size,
        foreign.store,
        _modified(foreign.path),
        foreign.path,
        foreign.files,
    )


def leftovers(files: tuple[Path, ...]) -> list[Path]:
    """Return the partial downloads of `files`."""
    return [part for path in files for part in parts_of(path)]


def paths_in_repository(entry: Entry, models_dir: Path) -> tuple[str, ...]:
    """Return the paths that a pulled model's files have in their repository."""
    if entry.manifest is None:
        return ()
    # Below <owner>/<repository>; for what somebody moved, names are all that is known.
    folder = Path(*entry.path.parent.relative_to(models_dir).parts[2:])
    return tuple((folder / path.name).as_posix() for path in entry.files)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _modified(path: Path) -> float:
    status = _status(path)
    return status.st_mtime if status else 0.0
