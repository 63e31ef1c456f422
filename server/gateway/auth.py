"""From what a client presents to a `Principal`."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from server.core.clock import Clock
from server.core.errors import InvalidApiKey, TooManyFailures
from server.gateway.failures import FailureLimiter, is_loopback
from server.gateway.principal import Principal
from server.store.key_text import PREFIX, id_of
from server.store.keys import StoredKey

_UNKNOWN = "This API key is not valid here. `onegpu keys list` on the server shows those that are."


class KeyStore(Protocol):
    """Where keys are looked up; each look sees what was last written."""

    def find(self, key_id: str) -> StoredKey | None:
        """Return a key. Raises `StoreError` when that cannot be known."""
        ...

    def empty(self) -> bool:
        """Whether there was never a key. Raises `StoreError` when that cannot be known."""
        ...


class Authenticator:
    """Tells who a request comes from. Belongs to the event loop.

    Without any key everybody is welcome, and this machine itself may change the server. From the
    first key on a valid one is required, also when all are revoked or the file is gone.
    """

    def __init__(self, keys: KeyStore, clock: Clock, failures: FailureLimiter) -> None:
        """`failures` bounds how often an address is told that its keys are wrong."""
        self.counters: Counter[str] = Counter()
        """Refusals by reason: missing, malformed, unknown, revoked, expired, limited."""
        self._keys = keys
        self._clock = clock
        self._failures = failures
        self._required = False
        self._offset = clock.wall() - clock.monotonic()

    def authenticate(self, presented: str | None, address: str) -> Principal:
        """Return who presented a key (None: none was), from `address`.

        Raises `InvalidApiKey`, or `TooManyFailures` when that was told too often, or `StoreError`.
        A valid key is always let in: behind one address may be many clients.
        """
        if not self.required():
            return Principal(admin=is_loopback(address))
        key_id = id_of(presented) if presented is not None else None
        if presented is None or key_id is None:
            raise self._refuse(address, *_unreadable(presented))
        found, now = self._keys.find(key_id), self._now()
        if found is None or not found.matches(presented, now):
            raise self._refuse(address, "unknown", _UNKNOWN)
        state = found.key.state(now)
        if state != "active":
            # Only who has the secret learns this.
            raise self._refuse(address, state, f"This API key is {state}. Ask for a new one.")
        key = found.key
        return Principal(key.id, key.name, key.limits, key.admin)

    def required(self) -> bool:
        """Whether there is or was a key. Raises `StoreError`."""
        if not self._required:
            self._required = not self._keys.empty()
        return self._required

    def _now(self) -> float:
        """Unix time; a clock that is set back brings no expired key to life."""
        return max(self._clock.wall(), self._clock.monotonic() + self._offset)

    def _refuse(self, address: str, reason: str, message: str) -> InvalidApiKey | TooManyFailures:
        self.counters[reason] += 1
        wait = self._failures.wait(address)
        if not wait:
            return InvalidApiKey(message)
        self.counters["limited"] += 1
        return TooManyFailures(
            "Too many requests without a valid API key came from this address. " + message,
            retry_after=wait,
        )


def _unreadable(presented: str | None) -> tuple[str, str]:
    if presented is None:
        return "missing", (
            "An API key is required. Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
        )
    return "malformed", (
        f"This is not an API key of this server: they begin with {PREFIX} and have 64 characters; "
        "it may have been cut off or mistyped, or there are two, in two headers."
    )
