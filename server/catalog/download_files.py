"""The files of one model on their way: is there room, what is there, and names only for what is verified.

Order on disk: manifest with `complete: false` → `….part` files, hashed as they come → all verified → renamed → manifest
with `complete: true`. A process killed anywhere in between leaves something that is not served and is continued.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from server.catalog.bodies import Body
from server.catalog.download_choice import size_text
from server.catalog.download_progress import Progress
from server.catalog.download_transfer import Partial
from server.catalog.hub_errors import Backoff, HubError
from server.catalog.hub_files import HubFile, parts_of
from server.catalog.library_manifest import Manifest, sync_folder, write_manifest
from server.core.errors import ModelFileError

_SPARE_BYTES = 64 << 20
_ATTEMPTS = 6


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class Machine:
    """What a pull needs of the machine; tests hand their own."""

    free_bytes: Callable[[Path], int] = _free_bytes
    """Bytes that may still be written to the disk of a folder."""
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Source:
    """Where files come from."""

    owner: str
    """Who has them, for messages: `the hub`, a host's name."""
    lists: str
    """Who says what their checksums are: `the hub lists`."""
    advice: str
    """What to do about a wrong checksum."""
    open: Callable[[HubFile, int], AbstractContextManager[Body]]
    """Opens a file from a byte on; raises `HubError` and what `Backoff` knows."""
    explain: Callable[[Exception], HubError]
    """Makes the error for people."""


class FilesDownload:
    """One model's download. Who runs it holds the model's lock."""

    def __init__(
        self, partials: Sequence[Partial], source: Source, progress: Progress, machine: Machine
    ) -> None:
        """`partials`: in order, the file that is to be opened first."""
        self._partials = list(partials)
        self._source = source
        self._progress = progress
        self._machine = machine

    def run(self, manifest: Manifest) -> None:
        """Bring all files under their names, and complete the manifest; checksums that were not known are filled in.

        Raises `HubError`, or `ModelFileError` for a wrong checksum.
        """
        partials = self._partials
        target = partials[0].target
        self._drop_stale()
        self._check_room()
        # From here on nothing of it counts as complete, whatever becomes of this process.
        write_manifest(target, manifest)
        for partial in partials:
            if partial.adopt():
                self._progress.say(f"{partial.target} is there, unverified; checking it")
            elif partial.target.exists():
                owner = self._source.owner
                self._progress.say(f"{partial.target} is not {owner}'s; it will be replaced")
        self._recover()
        self._fetch()
        sums = [partial.checksum for partial in partials]
        files = tuple(
            replace(file, sha256=checksum)
            for file, checksum in zip(manifest.files, sums, strict=True)
        )
        if files != manifest.files:
            # Before the names, so that a file that is renamed and then left alone can be verified.
            manifest = replace(manifest, files=files)
            write_manifest(target, manifest)
        for partial in partials:
            partial.path.replace(partial.target)
        sync_folder(target.parent)
        write_manifest(target, replace(manifest, complete=True))

    def _drop_stale(self) -> None:
        """Remove parts of another version of these files."""
        for partial in self._partials:
            for path in parts_of(partial.target):
                if path != partial.path:
                    owner = self._source.owner
                    self._progress.say(f"{owner} has a newer file; dropping {path.name}")
                    path.unlink()

    def _check_room(self) -> None:
        missing = sum(partial.missing for partial in self._partials)
        folder = self._partials[0].target.parent
        free = self._machine.free_bytes(folder)
        if missing + _SPARE_BYTES > free:
            raise HubError(
                f"The disk of {folder} has {size_text(free)} free, and {size_text(missing)} are "
                "still to come. Free some space, choose a smaller quantization, or another folder "
                "(models_dir, --models-dir)."
            )

    def _recover(self) -> None:
        there = sum(partial.there for partial in self._partials)
        if there:
            self._progress.begin("checking what is there", total=there, done=0)
        try:
            for partial in self._partials:
                partial.recover(self._progress)
        finally:
            if there:
                self._progress.end()

    def _fetch(self) -> None:
        done = sum(partial.there for partial in self._partials)
        total = sum(partial.file.size for partial in self._partials)
        self._progress.begin(_label(self._partials), total=total, done=done)
        try:
            for partial in self._partials:
                self._fetch_one(partial)
        finally:
            self._progress.end()

    def _fetch_one(self, partial: Partial) -> None:
        """Complete one file. What a killed machine left may be unsound: then it is fetched anew, once."""
        progress, source = self._progress, self._source
        while True:
            backoff = Backoff(
                _ATTEMPTS, sleep=self._machine.sleep, say=progress.say, explain=source.explain
            )
            partial.fetch(
                lambda start: source.open(partial.file, start), progress=progress, backoff=backoff
            )
            if partial.sound:
                return
            checksum, resumed = partial.checksum, partial.resumed
            progress.advance(-partial.file.size)
            partial.discard()
            if not resumed:
                raise ModelFileError(
                    f"{partial.target.name} came with SHA-256 {checksum}, but {source.lists} "
                    f"{partial.file.sha256}. It was removed. {source.advice}"
                )
            progress.say(f"{partial.target.name}: what was there is unsound; getting it anew")


def _label(partials: Sequence[Partial]) -> str:
    name = PurePosixPath(partials[0].file.path).name
    return name if len(partials) == 1 else f"{name} and {len(partials) - 1} more"
