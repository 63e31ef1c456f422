"""API keys: what one may do, and the table that has them. Secrets are never stored, only hashes."""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hmac import compare_digest
from typing import Any, Literal

from server.core.errors import ConfigError
from server.store.connection import Database, translated
from server.store.key_text import PREFIX, key_hash, new_id, new_key, referred_id

Priority = Literal["interactive", "normal", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "normal", "batch")
LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key grants. None leaves it to the server's settings; 0 lifts the limit."""

    rpm: int | None = None
    """Requests per minute."""
    burst: int | None = None
    """Requests that may come at once, at least 1."""
    tpm: int | None = None
    """Tokens per minute, prompt and output."""
    max_concurrent: int | None = None
    """Requests at a time."""
    max_context: int | None = None
    """Most tokens of one request, prompt and output together; at least 1."""
    max_tokens: int | None = None
    """Most output tokens of one request, at least 1."""
    priority: Priority | None = None
    """The highest class of this key's requests."""
    weight: float = 1.0
    """Share among the keys that wait in the same class."""
    models: tuple[str, ...] | None = None
    """Served names it may use; None: all."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. Times are Unix seconds."""

    id: str
    name: str
    created: int
    expires: int | None = None
    revoked: int | None = None
    admin: bool = False
    """May change the server: load and unload models, and what else is not answering requests."""
    limits: KeyLimits = field(default_factory=KeyLimits)

    @property
    def prefix(self) -> str:
        """The part that may be shown."""
        return f"{PREFIX}{self.id}"

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        """Whether it counts at Unix time `now`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key with what its secret is compared with."""

    key: ApiKey
    hash: bytes = field(repr=False)
    previous_hash: bytes | None = field(repr=False)
    """Of the secret before the last rotation, where that one may be used on."""
    previous_until: int
    """Unix seconds."""

    def matches(self, presented: str, now: float) -> bool:
        """Whether `presented` is this key. Takes the same time wherever texts differ."""
        digest = key_hash(presented)
        current = compare_digest(digest, self.hash)
        previous = compare_digest(digest, self.previous_hash or bytes(32))
        return current or (previous and now < self.previous_until)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key whose secret was just drawn: the only time that it is known."""

    key: ApiKey
    secret: str = field(repr=False)
    """The whole text that clients send."""


class KeyRepository:
    """Creates and changes keys. Several processes may do so at once; `StoreError` from all."""

    def __init__(self, database: Database) -> None:
        """Look after the keys in `database`."""
        self._database = database

    def create(
        self,
        name: str,
        now: float,
        *,
        limits: KeyLimits | None = None,
        expires: float | None = None,
        admin: bool = False,
    ) -> NewKey:
        """Add a key; times are Unix seconds. Raises `ConfigError` for a name that cannot be."""
        limits = limits or KeyLimits()
        end = None if expires is None else int(expires)
        key = ApiKey(new_id(), clean_name(name), int(now), end, None, admin, limits)
        secret = new_key(key.id)
        values: dict[str, Any] = {
            **asdict(limits),
            "models": None if limits.models is None else json.dumps(limits.models),
            "id": key.id,
            "name": key.name,
            "hash": key_hash(secret),
            "created": key.created,
            "expires": key.expires,
            "admin": int(admin),
        }
        columns, places = ", ".join(values), ", ".join(f":{column}" for column in values)
        with self._database.transaction() as connection:
            if (other := _active(connection, key.name)) is not None:
                raise ConfigError(
                    f"There is a key {key.name!r} already ({other.prefix}). Rotate or revoke it, or "
                    "choose another name."
                )
            connection.execute(f"INSERT INTO keys ({columns}) VALUES ({places})", values)  # noqa: S608 - names of our own
        return NewKey(key, secret)

    def all(self) -> list[ApiKey]:
        """Return all keys, revoked ones too, the oldest first."""
        rows = self._database.rows("SELECT * FROM keys ORDER BY created, id")
        with translated(self._database.path):
            return [stored_key(row).key for row in rows]

    def revoke(self, references: Sequence[str], now: float) -> list[ApiKey]:
        """End keys, named by name or id, all or none. Raises `ConfigError` for what is no key."""
        with self._database.transaction() as connection:
            keys = [_referred(connection, reference) for reference in references]
            for key in keys:
                connection.execute(
                    "UPDATE keys SET revoked = coalesce(revoked, ?), previous_hash = NULL, "
                    "previous_until = NULL WHERE id = ?",
                    (int(now), key.id),
                )
            return [_by_id(connection, key.id) for key in keys]

    def rotate(self, reference: str, now: float, *, overlap: float = 0.0) -> NewKey:
        """Give a key a new secret; the old one counts for `overlap` seconds more.

        Name, id, limits and all that belongs to the key stay. Raises `ConfigError` for a key that
        is not there, revoked or expired.
        """
        with self._database.transaction() as connection:
            key = _referred(connection, reference)
            state = key.state(now)
            if state != "active":
                raise ConfigError(
                    f"The key {key.name!r} ({key.prefix}) is {state}; create a new one."
                )
            secret = new_key(key.id)
            keep = overlap > 0
            connection.execute(
                "UPDATE keys SET previous_hash = iif(?, hash, NULL), previous_until = ?, hash = ? "
                "WHERE id = ?",
                (keep, int(now + overlap) if keep else None, key_hash(secret), key.id),
            )
            return NewKey(key, secret)


def clean_name(name: str) -> str:
    """Return `name` in the one form that it is stored and compared in. Raises `ConfigError`."""
    if name.startswith(PREFIX):
        # Not repeated here: somebody may have pasted a secret.
        raise ConfigError(f"A key's name must not begin with {PREFIX}; that is how keys begin.")
    clean = unicodedata.normalize("NFC", name)
    if not clean or clean != clean.strip() or not clean.isprintable():
        raise ConfigError(
            f"{name[:LONGEST_NAME]!a} cannot be a key's name: it needs characters that can be seen, "
            "without spaces around them."
        )
    if len(clean) > LONGEST_NAME:
        raise ConfigError(f"A key's name has at most {LONGEST_NAME} characters, not {len(clean)}.")
    return clean


def stored_key(row: Mapping[str, Any] | sqlite3.Row) -> StoredKey:
    """Read a row of the table. Raises `sqlite3.DatabaseError` for what can be in none."""
    try:
        limits = KeyLimits(
            rpm=row["rpm"],
            burst=row["burst"],
            tpm=row["tpm"],
            max_concurrent=row["max_concurrent"],
            max_context=row["max_context"],
            max_tokens=row["max_tokens"],
            priority=row["priority"],
            weight=row["weight"],
            models=None if row["models"] is None else _names(row["models"]),
        )
        key = ApiKey(
            id=row["id"],
            name=row["name"],
            created=row["created"],
            expires=row["expires"],
            revoked=row["revoked"],
            admin=bool(row["admin"]),
            limits=limits,
        )
        return StoredKey(key, row["hash"], row["previous_hash"], row["previous_until"] or 0)
    except (TypeError, ValueError) as error:
        raise sqlite3.DatabaseError(f"a row of the keys is damaged: {error}") from error


def _names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    # Anything else would be read as other names, or as all.
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        message = "models is no list of names"
        raise ValueError(message)
    return tuple(names)


def _active(connection: sqlite3.Connection, name: str) -> ApiKey | None:
    row = connection.execute(
        "SELECT * FROM keys WHERE name = ? AND revoked IS NULL", (name,)
    ).fetchone()
    return None if row is None else stored_key(row).key


def _by_id(connection: sqlite3.Connection, key_id: str) -> ApiKey:
    row = connection.execute("SELECT * FROM keys WHERE id = ?", (key_id,)).fetchone()
    if row is None:
        raise ConfigError(f"There is no key {PREFIX}{key_id}. `onegpu keys list` shows all.")
    return stored_key(row).key


def _referred(connection: sqlite3.Connection, reference: str) -> ApiKey:
    """Find a key by its id, by its name, or by its name of old if it is revoked."""
    if reference.startswith(PREFIX):
        key_id = referred_id(reference)
        if key_id is None:
            raise ConfigError(
                f"That is no key's id: {PREFIX} and 10 characters. See `onegpu keys list`."
            )
        return _by_id(connection, key_id)
    name = unicodedata.normalize("NFC", reference)
    row = connection.execute(
        "SELECT * FROM keys WHERE name = ? ORDER BY revoked IS NULL DESC, revoked DESC LIMIT 1",
        (name,),
    ).fetchone()
    if row is None:
        raise ConfigError(f"There is no key {name[:LONGEST_NAME]!r}. `onegpu keys list` shows all.")
    return stored_key(row).key
