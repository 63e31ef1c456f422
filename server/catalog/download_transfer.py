"""One file from a server to disk: continued where an earlier attempt stopped, hashed on the way."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path

import httpx2

from server.catalog.bodies import Body
from server.catalog.download_progress import Progress
from server.catalog.hub_errors import CLIENT_ERRORS, Backoff, HubError
from server.catalog.hub_files import HubFile

Opener = Callable[[int], AbstractContextManager[Body]]

_READ_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Partial:
    """A file on its way: `<name>.<start of its SHA-256>.part` beside where it will be.

    The checksum (or version) in the name keeps bytes of two versions of a file apart.
    """

    def __init__(self, target: Path, file: HubFile, version: str | None = None) -> None:
        """`version` tells a file without a known checksum from others of its name, by 12 letters or digits."""
        self.target = target
        self.file = file
        self.path = target.with_name(f"{target.name}.{version or (file.sha256 or '')[:12]}.part")
        self.resumed = False
        """Whether bytes of an earlier run are part of it."""
        self._have = 0
        self._furthest = 0
        self._digest = hashlib.sha256()

    @property
    def there(self) -> int:
        """Bytes on disk that can be used."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return 0
        return size if size <= self.file.size else 0

    @property
    def missing(self) -> int:
        """Bytes that are still to come; none where a file of this size waits to be adopted."""
        return 0 if self._adoptable else self.file.size - self.there

    @property
    def sound(self) -> bool:
        """Whether it is whole and its checksum the known one, where one is known."""
        whole = self._have == self.file.size
        return whole and self.file.sha256 in (None, self._digest.hexdigest())

    @property
    def checksum(self) -> str:
        """SHA-256 of what is there, hexadecimal."""
        return self._digest.hexdigest()

    def adopt(self) -> bool:
        """Take a file that has the final name and size, but was not verified under it.

        It was renamed just before its process was killed, or somebody put it there. Returns whether there was one.
        """
        if not self._adoptable:
            return False
        self.target.replace(self.path)
        return True

    @property
    def _adoptable(self) -> bool:
        if self.file.sha256 is None or self.path.exists() or not self.target.is_file():
            return False
        return self.target.stat().st_size == self.file.size

    def recover(self, progress: Progress) -> None:
        """Hash what an earlier run left."""
        self._restart()
        if not self.there:
            self.path.unlink(missing_ok=True)
            return
        self.resumed = True
        with self.path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                self._digest.update(data)
                self._have += len(data)
                progress.advance(len(data))

    def fetch(self, open_from: Opener, *, progress: Progress, backoff: Backoff) -> None:
        """Append what is missing, however often the connection is lost.

        `open_from` gives the file's body from a byte on. Raises `HubError` when the server refuses, gives up, or
        the disk is full; what came is kept.
        """
        try:
            # Unbuffered: what is hashed is in the file, and a full disk has nothing left to say at its closing.
            with self.path.open("ab", buffering=0) as file:
                while self._have < self.file.size:
                    try:
                        self._receive(file, open_from, progress, backoff)
                    except CLIENT_ERRORS as error:
                        backoff.after(error)
                os.fsync(file.fileno())
        except OSError as error:
            raise self._disk_error(error) from error

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)
        self._restart()
        self.resumed = False

    def _receive(
        self, file: FileIO, open_from: Opener, progress: Progress, backoff: Backoff
    ) -> None:
        with open_from(self._have) as body:
            if body.total is not None and body.total != self.file.size:
                raise HubError(
                    f"{self.file.path} has {body.total:,} bytes where it is served, but the hub "
                    f"lists {self.file.size:,}. Try again later, or another mirror."
                )
            if body.start not in (0, self._have):
                raise HubError(
                    f"The server was asked for {self.file.path} from byte {self._have:,} on and "
                    f"sends it from byte {body.start:,} on. Try again later, or another mirror."
                )
            if body.start != self._have:
                progress.say("the server does not continue downloads; beginning again")
                progress.advance(-self._have)
                file.truncate(0)
                self._restart()
            for chunk in body.chunks:
                self._append(file, chunk)
                progress.advance(len(chunk))
                if self._have > self._furthest:
                    # Bytes that came before are no progress: else a server without ranges that always
                    # cuts at one place would be asked for ever.
                    self._furthest = self._have
                    backoff.progress()
        if self._have < self.file.size:
            raise httpx2.RemoteProtocolError("the server closed the connection early")

    def _append(self, file: FileIO, chunk: bytes) -> None:
        if self._have + len(chunk) > self.file.size:
            raise HubError(
                f"The server sends more than the {self.file.size:,} bytes of {self.file.path}."
            )
        left = memoryview(chunk)
        while left:
            # A disk that has just filled up takes a part, and refuses the rest.
            left = left[file.write(left) :]
        self._digest.update(chunk)
        self._have += len(chunk)

    def _restart(self) -> None:
        self._digest = hashlib.sha256()
        self._have = 0

    def _disk_error(self, error: OSError) -> HubError:
        if error.errno in _NO_ROOM:
            return HubError(
                f"The disk of {self.path.parent} is full: {self.file.size - self.there:,} bytes of "
                f"{self.target.name} are missing. Free some space; the same command goes on."
            )
        if error.errno == errno.EFBIG:
            return HubError(
                f"{self.path.parent} takes no file of {self.file.size:,} bytes: its file system, or "
                "a limit of this process (ulimit -f), ends at less. Choose another folder "
                "(models_dir, --models-dir)."
            )
        return HubError(f"{self.path} cannot be written: {error.strerror or error}.")


def sha256_of(path: Path, progress: Progress) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            progress.advance(len(data))
    return digest.hexdigest()
