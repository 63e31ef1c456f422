"""The schema, as the steps that lead to it; `user_version` says how many of them a file has seen.

A step that was released is never edited: what changes is a further step.
"""

from __future__ import annotations

import sqlite3

_KEYS = (
    """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY CHECK (length(id) > 0),
        name TEXT NOT NULL CHECK (length(name) > 0),
        hash BLOB NOT NULL CHECK (length(hash) = 32),
        previous_hash BLOB CHECK (length(previous_hash) = 32),
        previous_until INTEGER CHECK (typeof(previous_until) IN ('integer', 'null')),
        created INTEGER NOT NULL CHECK (typeof(created) = 'integer'),
        expires INTEGER CHECK (typeof(expires) IN ('integer', 'null')),
        revoked INTEGER CHECK (typeof(revoked) IN ('integer', 'null')),
        admin INTEGER NOT NULL CHECK (admin IN (0, 1)),
        rpm INTEGER CHECK (rpm >= 0),
        burst INTEGER CHECK (burst >= 1),
        tpm INTEGER CHECK (tpm >= 0),
        max_concurrent INTEGER CHECK (max_concurrent >= 0),
        max_context INTEGER CHECK (max_context >= 1),
        max_tokens INTEGER CHECK (max_tokens >= 1),
        priority TEXT CHECK (priority IN ('interactive', 'normal', 'batch')),
        weight REAL NOT NULL CHECK (weight > 0),
        models TEXT CHECK (typeof(models) IN ('text', 'null'))
    ) WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked IS NULL",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_KEYS,)
"""Step n leads from `user_version` n to n + 1."""


def schema_version(connection: sqlite3.Connection) -> int:
    """Return how many steps the file has seen."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date, all or nothing. Raises `sqlite3.Error`.

    The connection is in autocommit mode. Another process may be doing the same.
    """
    if schema_version(connection) >= len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again: whoever held the lock until now may have done it.
        for step in MIGRATIONS[schema_version(connection) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
