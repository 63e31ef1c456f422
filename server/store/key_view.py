"""Keys as the server sees them: found by id, always as the file says now.

Whoever changes keys is another process. Each look asks the file system whether the file is still
the same, and SQLite whether anybody wrote; both take microseconds. While the file cannot be read,
the keys that were in use go on, and nothing else is let in.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from pathlib import Path

from server.core.errors import ConfigError
from server.store.connection import FILE, check_header, connect
from server.store.keys import StoredKey, stored_key
from server.store.refusals import StoreError, refusal

log = logging.getLogger(__name__)

_FAILURES = (sqlite3.Error, OSError, ConfigError)
_BUSY_SECONDS = 0.05
"""The event loop waits here; readers wait only while a crashed writer's log is put in order."""


class KeyView:
    """Looks keys up in the store of a data directory. Belongs to one thread."""

    def __init__(self, directory: Path, *, cached: int = 4096) -> None:
        """The file may come later, go and come back. At most `cached` keys are kept in memory."""
        self.path = directory / FILE
        self.problem: str | None = None
        """Why the file cannot be read, while it cannot."""
        self._capacity = cached
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._version: object = None
        """Changes whenever somebody wrote to the file, and with every file."""
        self._known: OrderedDict[str, StoredKey] = OrderedDict()
        """Keys in use as of that version; the ones used last at the end."""
        self._empty: tuple[object, bool] = (None, True)

    def find(self, key_id: str) -> StoredKey | None:
        """Return a key. Raises `StoreError` when it was not in use and the file cannot be read."""
        try:
            found = self._find(key_id) if self._refresh() else None
        except _FAILURES as error:
            self._fail(error)
            if key_id not in self._known:
                raise _unreadable() from error
            return self._known[key_id]
        self._mend()
        return found

    def empty(self) -> bool:
        """Whether there was never a key. Raises `StoreError` when the file cannot be read."""
        try:
            empty = not self._refresh() or self._is_empty()
        except _FAILURES as error:
            self._fail(error)
            raise _unreadable() from error
        self._mend()
        return empty

    def close(self) -> None:
        """Let go of the file; a later look opens it again."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._identity = self._version = None

    def _refresh(self) -> bool:
        """Open the file, or see whether anybody wrote to it. False: no file, and no key to miss."""
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if self._identity is not None and not self._empty[1]:
                raise
            self.close()
            return False
        identity = (status.st_dev, status.st_ino)
        if identity != self._identity:
            self._open(identity)
        version = (identity, self._rows("PRAGMA data_version")[0][0])
        if version != self._version:
            # All that are in use, now: should the file go, a key that was revoked must stay so.
            for key_id in tuple(self._known):
                self._read(key_id)
            self._version = version
            self._is_empty()
        return True

    def _open(self, identity: tuple[int, int]) -> None:
        connection = connect(self.path, read_only=True, patience=_BUSY_SECONDS)
        try:
            check_header(self.path, connection)
        except BaseException:
            connection.close()
            raise
        self.close()
        self._connection, self._identity = connection, identity

    def _is_empty(self) -> bool:
        if self._empty[0] != self._version:
            self._empty = (self._version, not self._rows("SELECT 1 FROM keys LIMIT 1"))
        return self._empty[1]

    def _find(self, key_id: str) -> StoredKey | None:
        if key_id not in self._known and not self._read(key_id):
            return None
        self._known.move_to_end(key_id)
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return self._known[key_id]

    def _read(self, key_id: str) -> bool:
        """Take a key as the file has it; False where it has none."""
        rows = self._rows("SELECT * FROM keys WHERE id = ?", key_id)
        if rows:
            self._known[key_id] = stored_key(rows[0])
        else:
            self._known.pop(key_id, None)
        return bool(rows)

    def _rows(self, sql: str, *parameters: str) -> list[sqlite3.Row]:
        if self._connection is None:
            message = "the file is not open"
            raise sqlite3.OperationalError(message)
        return self._connection.execute(sql, parameters).fetchall()

    def _fail(self, error: Exception) -> None:
        if isinstance(error, sqlite3.Error):
            problem = refusal(self.path, error)
        elif isinstance(error, ConfigError):
            problem = error.message
        else:
            problem = f"{self.path} cannot be read: {getattr(error, 'strerror', None) or error}."
        if self.problem is None:
            log.error(
                "API keys cannot be looked up; those in use go on, no other is let in. %s", problem
            )
        self.problem = problem

    def _mend(self) -> None:
        if self.problem is not None:
            self.problem = None
            log.warning("API keys can be looked up again")


def _unreadable() -> StoreError:
    return StoreError("The server cannot look API keys up now; its log says why.")
