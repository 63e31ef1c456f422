"""The models on this machine: the models folder, Ollama's store and the hub client's cache.

models/<owner>/<repo>/<file>.gguf         as the hub names it, parts of a split one beside each other
models/<owner>/<repo>/<file>.gguf.json    manifest: repository, commit, sizes, SHA-256
models/<owner>/<repo>/<file>.gguf.<sha>.part   on its way; never served
models/<anything>.gguf                    put there by hand
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from server.catalog.catalogue import Catalogue
from server.catalog.catalogue_models import builtin_catalogue
from server.catalog.download_lock import exclusive, lock_path
from server.catalog.foreign_stores import (
    Foreign,
    hub_cache_models,
    is_whole,
    ollama_models,
    usual_hub_cache,
    usual_ollama_folders,
)
from server.catalog.hub_files import parts_of, quant_of, split_siblings
from server.catalog.library_manifest import SUFFIX, Manifest, manifest_path, read_manifest
from server.catalog.references import ModelRef
from server.core.errors import ConfigError, ModelFileError


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


class Library:
    """Finds, lists and removes models. Holds no state: every call looks at the disk."""

    def __init__(
        self,
        models_dir: Path,
        catalogue: Catalogue,
        *,
        ollama: tuple[Path, ...] = (),
        hub_cache: Path | None = None,
    ) -> None:
        """`ollama`: folders with `manifests` and `blobs`; `hub_cache`: with `models--…`; both may be missing."""
        self.models_dir = models_dir
        self.catalogue = catalogue
        self._ollama = ollama
        self._hub_cache = hub_cache

    def find(self, ref: ModelRef) -> Path | None:
        """Return the file to open, complete and as it was verified; None when there is none.

        Raises `ModelFileError` for a file reference to something incomplete or changed since it was verified.
        """
        entry = self.find_entry(ref)
        return None if entry is None else entry.path

    def find_entry(self, ref: ModelRef) -> Entry | None:
        """Return the entry behind `find`: from the models folder first, then Ollama, then the cache."""
        if ref.kind == "file":
            return self._find_file(ref)
        usable = [entry for entry in self._pulled() if entry.problem is None]
        found = self._best([entry for entry in usable if self._matches(entry, ref)], ref)
        return found or self._find_foreign(ref)

    def entries(self) -> list[Entry]:
        """Return everything there is, by name; also what is partial or damaged."""
        pulled = list(self._pulled())
        known = {path for entry in pulled for path in entry.files}
        loose = list(self._loose(known))
        foreign = [_foreign_entry(each) for each in self._foreign()]
        return sorted([*pulled, *loose, *foreign], key=lambda entry: (entry.name, entry.source))

    def named(self, text: str) -> list[Entry]:
        """Return the entries that `text` may mean: a listed name, a reference, or a path."""
        entries = self.entries()
        exact = [entry for entry in entries if entry.name == text]
        if exact:
            return exact
        ref = self.catalogue.parse(text)
        if ref.path is not None:
            wanted = ref.path.resolve()
            return [e for e in entries if wanted in {file.resolve() for file in e.files}]
        return [entry for entry in entries if self._matches(entry, ref)]

    def remove(self, entry: Entry) -> int:
        """Delete an entry's files, parts and manifest; return the bytes freed.

        Raises `ConfigError` for what is not ours.
        """
        if not entry.ours:
            raise ConfigError(
                f"{entry.name} belongs to {entry.source} ({entry.path}); remove it with its own tool."
            )

        def refuse() -> None:
            raise ConfigError(f"{entry.name} is being downloaded; stop that first.")

        freed = 0
        with exclusive(lock_path(entry.files[0]), waiting=refuse):
            # The manifest goes last: killed in between, what is left is known as incomplete.
            for path in (*entry.files, *_leftovers(entry.files)):
                if path.exists() or path.is_symlink():
                    freed += path.lstat().st_size
                    path.unlink()
            manifest_path(entry.files[0]).unlink(missing_ok=True)
        self._remove_empty_folders(entry.path.parent)
        return freed

    def begun(self, ref: ModelRef) -> Manifest | None:
        """Return the download that was begun as `ref` and not ended."""
        for entry in self._pulled():
            manifest = entry.manifest
            if manifest and not manifest.complete and manifest.requested == str(ref):
                return manifest
        return None

    def _find_file(self, ref: ModelRef) -> Entry | None:
        path = ref.path
        if path is None or not path.is_file():
            return None
        for entry in self._pulled():
            if path.resolve() in {file.resolve() for file in entry.files}:
                if entry.problem is not None:
                    raise ModelFileError(f"{path} cannot be served: {entry.problem}")
                return replace(entry, path=path)
        missing = [n for n in split_siblings(path.name) if not path.with_name(n).is_file()]
        if missing:
            raise ModelFileError(f"{path} is a part of a split model; {missing[0]} is missing.")
        return _file_entry(path, str(path))

    def _find_foreign(self, ref: ModelRef) -> Entry | None:
        wanted = [_foreign_entry(each) for each in self._foreign() if self._is_foreign(each, ref)]
        whole = [e for e in wanted if all(is_whole(path) for path in e.files)]
        return self._best(whole, ref)

    def _foreign(self) -> Iterator[Foreign]:
        for folder in self._ollama:
            yield from ollama_models(folder)
        if self._hub_cache is not None:
            yield from hub_cache_models(self._hub_cache)

    def _is_foreign(self, foreign: Foreign, ref: ModelRef) -> bool:
        if ref.revision is not None or ref.file is not None:
            return False
        if ref.quant is not None and foreign.quant != ref.quant:
            return False
        if foreign.repo is not None:
            return foreign.repo.lower() in {r.lower() for r in self.catalogue.repositories(ref)}
        if ref.kind != "catalogue":
            return False
        model = self.catalogue.model(ref)
        names = [n if ":" in n else f"{n}:latest" for n in (model.name, *model.aliases)]
        return any(foreign.name == n or foreign.name.startswith(f"{n}-") for n in names)

    def _matches(self, entry: Entry, ref: ModelRef) -> bool:
        manifest = entry.manifest
        if manifest is None or ref.kind == "file":
            return False
        if manifest.repo.lower() not in {r.lower() for r in self.catalogue.repositories(ref)}:
            return False
        if ref.file is not None and not ref.file.endswith(manifest.files[0].name):
            return False
        if ref.revision is not None and not manifest.revision.startswith(ref.revision):
            return str(ref) == manifest.requested
        return ref.quant is None or ref.quant == manifest.quant

    def _best(self, found: list[Entry], ref: ModelRef) -> Entry | None:
        """Prefer what was pulled under this very name, then the largest."""
        by_size = sorted(found, key=lambda entry: -entry.size)
        asked = [e for e in by_size if e.manifest and e.manifest.requested == str(ref)]
        return next(iter([*asked, *by_size]), None)

    def _pulled(self) -> Iterator[Entry]:
        for path in sorted(self.models_dir.rglob(f"*.gguf{SUFFIX}")):
            try:
                manifest = read_manifest(path)
            except ModelFileError as error:
                # One damaged note must not hide all other models.
                yield _damaged_entry(path, error.message)
                continue
            if manifest is not None and manifest.files:
                yield _pulled_entry(path.parent, manifest)

    def _loose(self, known: set[Path]) -> Iterator[Entry]:
        for path in sorted(self.models_dir.rglob("*.gguf")):
            parts = split_siblings(path.name)
            if path not in known and path.is_file() and path.name == parts[0]:
                yield _file_entry(path, str(path))

    def _remove_empty_folders(self, folder: Path) -> None:
        root = self.models_dir.resolve()
        while folder.resolve() != root and root in folder.resolve().parents:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def open_library(
    models_dir: Path, *, ollama: Path | None = None, hub_cache: Path | None = None
) -> Library:
    """Return the library with the built-in catalogue; None are the other programs' usual places."""
    return Library(
        models_dir,
        builtin_catalogue(),
        ollama=usual_ollama_folders() if ollama is None else (ollama,),
        hub_cache=hub_cache or usual_hub_cache(),
    )


def _pulled_entry(folder: Path, manifest: Manifest) -> Entry:
    files = tuple(folder / file.name for file in manifest.files)
    sizes = [path.stat().st_size if path.is_file() else None for path in files]
    parts = sum(path.stat().st_size for path in _leftovers(files))
    there = sum(size or 0 for size in sizes) + parts
    problem = None
    if not manifest.complete:
        total = sum(file.size for file in manifest.files)
        share = f"{100 * there // max(total, 1)} % there"
        problem = f"not complete ({share}); go on with: onegpu pull {manifest.requested}"
    elif sizes != [file.size for file in manifest.files]:
        problem = (
            f"not the size that was verified; get it again with: onegpu pull {manifest.requested}"
        )
    modified = manifest_path(files[0]).stat().st_mtime
    return Entry(
        manifest.name,
        manifest.quant,
        there,
        "onegpu",
        modified,
        files[0],
        files,
        problem,
        manifest,
    )


def _damaged_entry(manifest: Path, problem: str) -> Entry:
    path = manifest.with_name(manifest.name.removesuffix(SUFFIX))
    size = path.stat().st_size if path.is_file() else 0
    modified = manifest.stat().st_mtime
    return Entry(str(path), quant_of(path.name), size, "onegpu", modified, path, (path,), problem)


def _leftovers(files: tuple[Path, ...]) -> list[Path]:
    return [part for path in files for part in parts_of(path)]


def _file_entry(path: Path, name: str) -> Entry:
    files = tuple(path.with_name(part) for part in split_siblings(path.name))
    there = [file for file in files if file.is_file()]
    problem = None if len(there) == len(files) else f"{len(files) - len(there)} parts are missing"
    return Entry(
        name,
        quant_of(path.name),
        sum(file.stat().st_size for file in there),
        "file",
        path.stat().st_mtime,
        path,
        files,
        problem,
    )


def _foreign_entry(foreign: Foreign) -> Entry:
    return Entry(
        foreign.name,
        foreign.quant,
        foreign.size,
        foreign.store,
        foreign.path.stat().st_mtime,
        foreign.path,
        foreign.files,
    )
