"""The data directory's SQLite file: made, opened, checked, migrated; one writer at a time.

Write-ahead logging, so that who reads never waits for who writes. Every commit reaches the disk
before it is reported: a revoked key must not come back after a power failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from server.core.beat import Jobs
from server.core.errors import ConfigError
from server.store.migrations import MIGRATIONS, migrate, schema_version
from server.store.refusals import StoreError, refusal

FILE = "onegpu.sqlite3"
"""The file's name in the data directory."""
APPLICATION_ID = 0x6F677075
"""`ogpu`: tells this file from other programs' databases."""
_BUSY_SECONDS = 5.0
"""How long a write waits for another process's."""


class Database:
    """One connection, usable from any thread. Statements of other threads wait for a transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Made by `open_database` only; the connection is in autocommit mode."""
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()
        self.writes = Jobs()
        """The writer's sign of life, for whoever watches it."""

    def __enter__(self) -> Self:
        """Return itself; `close` comes at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Return all rows of a query. Raises `StoreError`."""
        with self._lock, translated(self.path):
            return self._connection.execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write all or nothing, alone among threads and processes.

        What the block raises undoes it. `sqlite3.IntegrityError` comes through as it is: which
        rule of the schema was broken is the caller's to tell. Other failures are `StoreError`.
        """
        with self.writes.job(), self._lock, translated(self.path):
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._connection.close()


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's failures into `StoreError`s that say what to do; broken rules come through."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        raise StoreError(refusal(path, error)) from error


def open_database(directory: Path) -> Database:
    """Open the store in `directory`; both are made if need be. Raises `ConfigError`.

    A file that is damaged, locked, another program's or a newer version's is never written to.
    """
    path = directory / FILE
    if directory.parts[:1] == ("~",):
        raise ConfigError(
            f"The data directory is {directory}, and this user has no home directory. Name another "
            "one: ONEGPU_DATA_DIR, data_dir."
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(directory):
            if not path.exists():
                _create(path)
                _keep_name(directory)
            return Database(path, _open(path))
    except OSError as error:
        raise ConfigError(
            f"The data directory {directory} cannot be used: {error.strerror or error}. Mend it, or "
            "name another one: ONEGPU_DATA_DIR, data_dir."
        ) from error
    except sqlite3.Error as error:
        raise ConfigError(refusal(path, error)) from error


def check_header(path: Path, connection: sqlite3.Connection) -> None:
    """Raise `ConfigError` for a file that is empty, not this program's, or too new."""
    if path.stat().st_size == 0:
        # SQLite would take it for a new database, and all keys would be gone without a word.
        raise ConfigError(refusal(path, sqlite3.DatabaseError("it is empty")))
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if owner != APPLICATION_ID:
        raise ConfigError(
            f"{path} is the database of another program. Name another data directory: "
            "ONEGPU_DATA_DIR, data_dir."
        )
    version = schema_version(connection)
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"{path} was written by a newer onegpu (schema {version}; this one knows "
            f"{len(MIGRATIONS)}). Upgrade onegpu, or name another data directory."
        )


def connect(
    path: Path, *, read_only: bool = False, patience: float = _BUSY_SECONDS
) -> sqlite3.Connection:
    """Return a connection in autocommit mode to an existing file. Raises `sqlite3.Error`."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=patience, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    try:
        for name, value in (("foreign_keys", 1), ("trusted_schema", 0), ("cell_size_check", 1)):
            connection.execute(f"PRAGMA {name} = {value}")
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    try:
        check_header(path, connection)
        _check_pages(path, connection)
        _log_ahead(path, connection)
        connection.execute("PRAGMA synchronous = FULL")
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_pages(path: Path, connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise ConfigError(refusal(path, sqlite3.DatabaseError(found)))


def _create(path: Path) -> None:
    """Make the file under another name first: half of one must never have the real name."""
    new = path.with_name(f".{path.name}.new")
    for leftover in (new, Path(f"{new}-wal"), Path(f"{new}-shm"), Path(f"{new}-journal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.closing(connect(new)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _log_ahead(new, connection)
        migrate(connection)
    new.replace(path)


def _keep_name(directory: Path) -> None:
    """Bring a new file's name to the disk: a power failure must not take the first key away."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _log_ahead(path: Path, connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise ConfigError(
            f"The file system of {path.parent} does not let SQLite share memory (network file "
            "systems do not). Name a data directory on a local disk: ONEGPU_DATA_DIR, data_dir."
        )


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: to turn a new file to write-ahead logging, SQLite waits for nobody.

    A lock on the database file itself would break SQLite's own when it is let go.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
