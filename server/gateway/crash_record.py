"""Requests that native code did not survive: remembered beyond the process that ran them.

What ran at a crash is suspect. Suspects run one at a time, so that a second crash tells which one it
was; that one is refused. A request that completes is cleared.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Protocol

from server.core.clock import Clock
from server.core.errors import QueueTimeout, RepeatedCrash

_CRASHES = 2
"""So many and it is refused."""


class Fingerprints(Protocol):
    """Memory that outlives the process."""

    def add(self, fingerprint: bytes) -> None:
        """Note that it is in native code's hands."""
        ...

    def remove(self, fingerprint: bytes) -> None:
        """Note that it is not any more."""
        ...

    def crashes(self, fingerprint: bytes) -> tuple[int, float]:
        """Return at how many crashes it ran, and when the last one was (monotonic seconds)."""
        ...

    def clear(self, fingerprint: bytes) -> None:
        """Forget its crashes."""
        ...


class Unremembered:
    """No memory: nobody is suspect."""

    def add(self, fingerprint: bytes) -> None:
        """Do nothing."""

    def remove(self, fingerprint: bytes) -> None:
        """Do nothing."""

    def crashes(self, fingerprint: bytes) -> tuple[int, float]:  # noqa: ARG002 - part of the protocol
        """Return none."""
        return 0, -math.inf

    def clear(self, fingerprint: bytes) -> None:
        """Do nothing."""


class CrashRecord:
    """Belongs to the event loop."""

    def __init__(self, memory: Fingerprints, clock: Clock, lifetime: float = 3600.0) -> None:
        """`memory`: what earlier processes have left, and where this one writes.

        `lifetime`: seconds for which a crash is held against a request.
        """
        self._memory = memory
        self._clock = clock
        self._lifetime = lifetime
        self._running: Counter[bytes] = Counter()
        self._alone = asyncio.Lock()

    async def enter(self, fingerprint: bytes, patience: float) -> Trace:
        """Return the request's entry; the caller must `leave` it. Suspects wait for each other.

        Raises `RepeatedCrash`, and `QueueTimeout` after `patience` seconds. An empty fingerprint is
        nobody's.
        """
        if not self._crashes(fingerprint):
            return Trace(self, fingerprint)
        self._check(fingerprint)
        try:
            async with asyncio.timeout(patience):
                await self._alone.acquire()
        except TimeoutError:
            raise QueueTimeout(
                f"This request ran when the server crashed and waits for others that did. Its turn "
                f"did not come within {patience:.0f} s."
            ) from None
        return Trace(self, fingerprint, self._alone)

    def began(self, fingerprint: bytes) -> None:
        """Note a part of a request that native code has in its hands from now on."""
        if fingerprint:
            self._running[fingerprint] += 1
            if self._running[fingerprint] == 1:
                self._memory.add(fingerprint)

    def ended(self, fingerprint: bytes) -> None:
        """Note the end of a part that `began`."""
        if fingerprint:
            self._running[fingerprint] -= 1
            if not self._running[fingerprint]:
                del self._running[fingerprint]
                self._memory.remove(fingerprint)

    def clear(self, fingerprint: bytes) -> None:
        """Hold no crash against a request that has completed."""
        if fingerprint and self._memory.crashes(fingerprint)[0]:
            self._memory.clear(fingerprint)

    def _crashes(self, fingerprint: bytes) -> int:
        count, when = self._memory.crashes(fingerprint) if fingerprint else (0, -math.inf)
        return count if self._clock.monotonic() - when < self._lifetime else 0

    def _check(self, fingerprint: bytes) -> None:
        if self._crashes(fingerprint) >= _CRASHES:
            left = self._lifetime - self._clock.monotonic() + self._memory.crashes(fingerprint)[1]
            raise RepeatedCrash(
                "Native code ended the server process twice while it ran this very request, so it "
                f"is refused for {math.ceil(left / 60)} min. Change the request; the server's log "
                "has what native code said."
            )


class Trace:
    """One request's entry in the record."""

    def __init__(
        self, record: CrashRecord, fingerprint: bytes, alone: asyncio.Lock | None = None
    ) -> None:
        """Made by `CrashRecord.enter`. `alone`: held by a suspect."""
        self._record = record
        self._fingerprint = fingerprint
        self._alone = alone

    def began(self) -> None:
        """Note a part that native code has in its hands from now on."""
        self._record.began(self._fingerprint)

    def ended(self, *, completed: bool) -> None:
        """Note the end of a part that `began`."""
        self._record.ended(self._fingerprint)
        if completed:
            self._record.clear(self._fingerprint)

    def leave(self) -> None:
        """Let the next suspect in. Idempotent."""
        if self._alone is not None:
            self._alone.release()
            self._alone = None
