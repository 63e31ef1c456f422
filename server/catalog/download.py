"""Pulling a model: what to take, whether there is room, and files that exist only once they are verified.

Order on disk: manifest with `complete: false` → `….part` files, hashed as they come → all verified → renamed → manifest
with `complete: true`. A process killed anywhere in between leaves something that is not served and is continued.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from server.catalog.download_choice import QuantChooser, size_text
from server.catalog.download_lock import exclusive, lock_path
from server.catalog.download_progress import Progress, Silent
from server.catalog.download_selection import Selector, exact_reference
from server.catalog.download_transfer import Partial
from server.catalog.hub import Hub, HubOptions
from server.catalog.hub_errors import CLIENT_ERRORS, Backoff, HubError, told
from server.catalog.hub_files import Candidate, HubFile, Listing, check_parts, parts_of
from server.catalog.library import Library
from server.catalog.library_entries import size_of
from server.catalog.library_manifest import (
    Manifest,
    ManifestFile,
    manifest_path,
    read_manifest,
    sync_folder,
    write_manifest,
)
from server.catalog.references import ModelRef, hub_hint
from server.core.errors import ConfigError, ModelFileError

_SPARE_BYTES = 64 << 20
_LISTING_ATTEMPTS = 3
_TRANSFER_ATTEMPTS = 6


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class Machine:
    """What a pull needs of the machine; tests hand their own."""

    free_bytes: Callable[[Path], int] = _free_bytes
    """Bytes that may still be written to the disk of a folder."""
    sleep: Callable[[float], None] = time.sleep


def pull(
    ref: ModelRef,
    library: Library,
    *,
    quant_chooser: QuantChooser,
    progress: Progress | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    offline: bool = False,
    machine: Machine | None = None,
) -> Path:
    """Return the file of `ref`, downloading what is not on this machine yet.

    Raises `ConfigError` for a name, `ModelFileError` for a repository without such a model or a wrong checksum, and
    `HubError` for everything about network, access, disk and offline mode.
    """
    progress = progress or Silent()
    found = library.find_entry(ref)
    if found is not None:
        if ref.kind == "file":
            return found.path
        where = "" if found.ours else f" in {found.source}'s store, used in place"
        progress.say(f"{ref} is there{where}: {found.path}")
        return found.path
    if ref.kind == "file":
        raise ConfigError(
            f"The model file {ref.path} does not exist, and a path is not pulled.{hub_hint(ref)}"
        )
    if offline:
        raise HubError(f"{ref} is not on this machine, and offline mode forbids to get it.")
    options = HubOptions(endpoint=endpoint, token=token)
    puller = _Puller(ref, library, Hub(options), quant_chooser, progress, machine or Machine())
    try:
        return puller.run()
    except OSError as error:
        what = error.filename or library.models_dir
        raise HubError(f"{what} cannot be written: {error.strerror or error}.") from error


class _Puller:
    def __init__(
        self,
        ref: ModelRef,
        library: Library,
        hub: Hub,
        chooser: QuantChooser,
        progress: Progress,
        machine: Machine,
    ) -> None:
        self._ref = ref
        self._library = library
        self._hub = hub
        self._chooser = chooser
        self._progress = progress
        self._machine = machine

    def run(self) -> Path:
        selector = Selector(self._ref, self._library, self._listing, self._chooser, self._progress)
        listing, candidate = selector.select()
        check_parts(candidate)
        unnamed = [file.path for file in candidate.files if file.sha256 is None]
        if unnamed:
            raise ModelFileError(
                f"{listing.repo}: the hub gives no SHA-256 for {unnamed[0]}, so it could not be "
                "verified. Choose another repository."
            )
        # The quantization is known only now: it may be here under its full name.
        name = exact_reference(self._ref, listing, candidate)
        found = self._library.find_entry(name)
        if found is not None:
            self._progress.say(f"{found.name} is there ({found.source}): {found.path}")
            return found.path
        # A revision has a folder of its own, so that it takes no other's place.
        at = f"@{self._ref.revision}" if self._ref.revision else ""
        folder = self._library.models_dir / Path(*PurePosixPath(listing.repo + at).parts)
        targets = [folder / Path(*PurePosixPath(file.path).parts) for file in candidate.files]
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        with exclusive(lock_path(targets[0]), waiting=self._waiting):
            if not self._complete(targets[0], candidate):
                self._download(str(name), listing, candidate, targets)
        return targets[0]

    def _listing(self, repo: str, revision: str | None) -> Listing:
        backoff = self._backoff(repo, _LISTING_ATTEMPTS)
        while True:
            try:
                return self._hub.listing(repo, revision)
            except CLIENT_ERRORS as error:
                backoff.after(error)
            except (KeyError, TypeError, ValueError) as error:
                raise HubError(
                    f"{self._hub.endpoint} does not answer as a model hub does ({error}). "
                    "Check hub.endpoint."
                ) from error

    def _complete(self, first: Path, candidate: Candidate) -> bool:
        """Tell whether another process has just finished the same download."""
        try:
            manifest = read_manifest(manifest_path(first))
        except ModelFileError:
            return False  # a damaged note is written anew, and the file is hashed
        wanted = [(file.size, file.sha256) for file in candidate.files]
        if manifest is None or not manifest.complete:
            return False
        there = [(file.size, file.sha256) for file in manifest.files]
        sizes = [size_of(first.parent / file.name) for file in manifest.files]
        return there == wanted and sizes == [size for size, _ in wanted]

    def _download(
        self, name: str, listing: Listing, candidate: Candidate, targets: list[Path]
    ) -> None:
        partials = [Partial(t, f) for t, f in zip(targets, candidate.files, strict=True)]
        self._drop_stale(partials)
        self._check_room(partials)
        # From here on nothing of it counts as complete, whatever becomes of this process.
        manifest = self._manifest(name, listing, candidate, targets)
        write_manifest(targets[0], manifest)
        for partial in partials:
            if partial.adopt():
                self._progress.say(f"{partial.target} is there, unverified; checking it")
            elif partial.target.exists():
                self._progress.say(f"{partial.target} is not the hub's; it will be replaced")
        self._recover(partials)
        self._fetch(listing, candidate, partials)
        for partial in partials:
            partial.path.replace(partial.target)
        sync_folder(targets[0].parent)
        write_manifest(targets[0], replace(manifest, complete=True))
        digests = ", ".join(partial.checksum[:12] for partial in partials)
        self._progress.say(f"verified SHA-256 {digests}: {targets[0]}")

    def _drop_stale(self, partials: list[Partial]) -> None:
        """Remove parts of another version of these files."""
        for partial in partials:
            for path in parts_of(partial.target):
                if path != partial.path:
                    self._progress.say(f"the hub has a newer file; dropping {path.name}")
                    path.unlink()

    def _check_room(self, partials: list[Partial]) -> None:
        missing = sum(partial.missing for partial in partials)
        folder = partials[0].target.parent
        free = self._machine.free_bytes(folder)
        if missing + _SPARE_BYTES > free:
            raise HubError(
                f"The disk of {folder} has {size_text(free)} free, and {size_text(missing)} are "
                "still to come. Free some space, choose a smaller quantization, or another folder "
                "(models_dir, --models-dir)."
            )

    def _recover(self, partials: list[Partial]) -> None:
        there = sum(partial.there for partial in partials)
        if there:
            self._progress.begin("checking what is there", total=there, done=0)
        try:
            for partial in partials:
                partial.recover(self._progress)
        finally:
            if there:
                self._progress.end()

    def _fetch(self, listing: Listing, candidate: Candidate, partials: list[Partial]) -> None:
        done = sum(partial.there for partial in partials)
        self._progress.begin(_label(partials), total=candidate.size, done=done)
        try:
            for partial in partials:
                self._fetch_one(listing, partial)
        finally:
            self._progress.end()

    def _fetch_one(self, listing: Listing, partial: Partial) -> None:
        """Complete one file. What a killed machine left may be unsound: then it is fetched anew, once."""
        while True:
            backoff = self._backoff(listing.repo, _TRANSFER_ATTEMPTS)
            partial.fetch(
                self._hub, listing.repo, listing.commit, progress=self._progress, backoff=backoff
            )
            if partial.sound:
                return
            checksum, resumed = partial.checksum, partial.resumed
            self._progress.advance(-partial.file.size)
            partial.discard()
            if not resumed:
                raise ModelFileError(
                    f"{partial.target.name} came with SHA-256 {checksum}, but the hub lists "
                    f"{partial.file.sha256}. It was removed. Try again, or another mirror."
                )
            self._progress.say(f"{partial.target.name}: what was there is unsound; getting it anew")

    def _manifest(
        self, name: str, listing: Listing, candidate: Candidate, targets: list[Path]
    ) -> Manifest:
        folder = targets[0].parent
        return Manifest(
            name=name,
            requested=str(self._ref),
            repo=listing.repo,
            revision=listing.commit,
            quant=candidate.quant,
            license=listing.license,
            pinned=self._ref.revision,
            files=tuple(
                ManifestFile(str(target.relative_to(folder)), file.size, file.sha256 or "")
                for target, file in zip(targets, candidate.files, strict=True)
            ),
        )

    def _backoff(self, repo: str, attempts: int) -> Backoff:
        def explain(error: Exception) -> HubError:
            return told(error, repo, self._hub.endpoint, has_token=self._hub.has_token)

        return Backoff(attempts, sleep=self._machine.sleep, say=self._progress.say, explain=explain)

    def _waiting(self) -> None:
        self._progress.say("another process is downloading this model; waiting for it")


def _label(partials: list[Partial]) -> str:
    first: HubFile = partials[0].file
    name = PurePosixPath(first.path).name
    return name if len(partials) == 1 else f"{name} and {len(partials) - 1} more"
