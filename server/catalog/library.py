"""The models on this machine: the models folder, Ollama's store and the hub client's cache.

models/<owner>/<repo>/<file>.gguf         as the hub names it, parts of a split one beside each other
models/<owner>/<repo>@<revision>/…        the same, where a branch, tag or commit was asked for
models/<owner>/<repo>/<file>.gguf.json    manifest: repository, commit, sizes, SHA-256
models/<owner>/<repo>/<file>.gguf.<sha>.part   on its way; never served
models/_adapters/<host>-…/<file>.gguf     an adapter from an address that is not the hub's
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
from server.catalog.hub_files import split_siblings
from server.catalog.library_entries import (
    Entry,
    damaged_entry,
    file_entry,
    files_below,
    foreign_entry,
    leftovers,
    paths_in_repository,
    pulled_entry,
)
from server.catalog.library_manifest import SUFFIX, manifest_path, read_manifest, temporary_path
from server.catalog.references import ModelRef, quant_name
from server.core.errors import ConfigError, ModelFileError


@dataclass(frozen=True, slots=True)
class Begun:
    """A download that did not end."""

    repo: str
    file: str
    """Path of its first file in the repository."""
    quant: str


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
        foreign = [foreign_entry(each) for each in self._foreign()]
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

        Raises `ConfigError` for what is not ours or is on its way, `ModelFileError` when the system refuses.
        """
        if not entry.ours:
            raise ConfigError(
                f"{entry.name} belongs to {entry.source} ({entry.path}); remove it with its own tool."
            )

        def refuse() -> None:
            raise ConfigError(f"{entry.name} is being downloaded; stop that first.")

        freed, first = 0, entry.files[0]
        try:
            with exclusive(lock_path(first), waiting=refuse):
                # The manifest goes last: killed in between, what is left is known as incomplete.
                for path in (*entry.files, *leftovers(entry.files)):
                    if path.exists() or path.is_symlink():
                        freed += path.lstat().st_size
                        path.unlink()
                temporary_path(first).unlink(missing_ok=True)
                manifest_path(first).unlink(missing_ok=True)
        except OSError as error:
            why = f"{error.filename or entry.path}: {error.strerror or error}"
            raise ModelFileError(f"{entry.name} cannot be removed. {why}.") from error
        self._remove_empty_folders(entry.path.parent)
        return freed

    def begun(self, ref: ModelRef) -> Begun | None:
        """Return the download that was begun as `ref` and not ended."""
        for entry in self._pulled():
            manifest = entry.manifest
            if manifest and not manifest.complete and manifest.requested == str(ref):
                first = paths_in_repository(entry, self.models_dir)[0]
                return Begun(manifest.repo, first, manifest.quant)
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
        if path.suffix == ".part":
            raise ModelFileError(f"{path} is a download that has not ended; it cannot be served.")
        missing = [n for n in split_siblings(path.name) if not path.with_name(n).is_file()]
        if missing:
            raise ModelFileError(f"{path} is a part of a split model; {missing[0]} is missing.")
        return file_entry(path, str(path))

    def _find_foreign(self, ref: ModelRef) -> Entry | None:
        wanted = [foreign_entry(each) for each in self._foreign() if self._is_foreign(each, ref)]
        whole = [e for e in wanted if all(is_whole(path) for path in e.files)]
        return self._best(whole, ref)

    def _foreign(self) -> Iterator[Foreign]:
        for folder in self._ollama:
            yield from ollama_models(folder)
        if self._hub_cache is not None:
            yield from hub_cache_models(self._hub_cache)

    def _is_foreign(self, foreign: Foreign, ref: ModelRef) -> bool:
        if ref.revision is not None:
            return False
        if ref.file is not None and ref.file not in foreign.in_repository:
            return False
        if ref.quant is not None and foreign.quant != ref.quant:
            return False
        if foreign.repo is not None:
            return foreign.repo.lower() in {r.lower() for r in self.catalogue.repositories(ref)}
        if ref.kind != "catalogue":
            return False
        model = self.catalogue.model(ref)
        names = [n if ":" in n else f"{n}:latest" for n in (model.name, *model.aliases)]
        # qwen3:4b-q8_0 is this model, qwen3:4b-instruct-2507-q8_0 is another one.
        return any(
            foreign.name == n
            or (foreign.name.startswith(f"{n}-") and quant_name(foreign.name[len(n) + 1 :]))
            for n in names
        )

    def _matches(self, entry: Entry, ref: ModelRef) -> bool:
        manifest = entry.manifest
        if manifest is None or ref.kind == "file":
            return False
        if manifest.repo.lower() not in {r.lower() for r in self.catalogue.repositories(ref)}:
            return False
        if ref.file is not None and ref.file not in paths_in_repository(entry, self.models_dir):
            return False
        if ref.revision != manifest.pinned and not _is_commit(ref.revision, manifest.revision):
            return False
        # UD-Q4_K_XL may have been asked for as Q4_K_XL.
        return ref.quant in (None, manifest.quant) or str(ref) == manifest.requested

    def _best(self, found: list[Entry], ref: ModelRef) -> Entry | None:
        """Prefer what was pulled under this very name, then the largest."""
        by_size = sorted(found, key=lambda entry: -entry.size)
        asked = [e for e in by_size if e.manifest and e.manifest.requested == str(ref)]
        return next(iter([*asked, *by_size]), None)

    def _pulled(self) -> Iterator[Entry]:
        for path in files_below(self.models_dir, f".gguf{SUFFIX}"):
            try:
                manifest = read_manifest(path)
            except ModelFileError as error:
                # One damaged note must not hide all other models.
                yield damaged_entry(path, error.message)
                continue
            if manifest is not None and manifest.files:
                yield pulled_entry(path.parent, manifest)

    def _loose(self, known: set[Path]) -> Iterator[Entry]:
        for path in files_below(self.models_dir, ".gguf"):
            if path in known or not path.is_file():
                continue
            entry = file_entry(path, str(path))
            known.update(entry.files)  # the other parts of a split model
            yield entry

    def _remove_empty_folders(self, folder: Path) -> None:
        root = self.models_dir.resolve()
        while folder.resolve() != root and root in folder.resolve().parents:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def _is_commit(asked: str | None, commit: str) -> bool:
    """Whether `asked` is the beginning of a commit's name, of six letters or more."""
    return asked is not None and len(asked) >= 6 and commit.startswith(asked)


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
