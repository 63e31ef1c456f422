"""What to tell a person about a store that cannot be used, and how to recover it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from server.core.errors import Unavailable

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DENIED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class StoreError(Unavailable):
    """The store cannot be read or written now."""

    code = "store_unavailable"


def refusal(path: Path, error: sqlite3.Error) -> str:
    """Say what is wrong with the file and what helps. Errors of no known kind mean damage."""
    code = (getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in _BUSY:
        return (
            f"{path} is locked by another program (fuser -v {path} names it). Let it finish or end "
            "it, and try again."
        )
    if code in _DENIED:
        return (
            f"{path} cannot be opened for writing ({error}). Its directory and the files "
            f"{path.name}, {path.name}-wal and {path.name}-shm must be writable for this user."
        )
    if code in _DISK:
        return f"{path} cannot be read or written ({error}). Look at the disk: df {path.parent}"
    return (
        f"{path} is damaged ({error}). Nothing was written to it. Move it away, with its -wal and "
        f"-shm files, then restore a backup; or rescue what is readable: sqlite3 MOVED .recover | "
        f"sqlite3 {path}; or start without it: all keys must then be made anew (onegpu keys create)."
    )
