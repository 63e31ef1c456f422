"""The one waiting line: who may enter, and when a refused client should come back."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass

from server.core.clock import Clock
from server.core.errors import Draining, QueueFull


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Bounds of the line and of the advice given to those it refuses."""

    slots: int
    """How many sequences run at once."""
    max_queue: int
    """How many may wait beyond that."""
    memory: float = 60.0
    """Seconds of busy time over which the drain rate is averaged."""
    unmeasured_retry: float = 10.0
    """Advice in seconds while nothing has been measured."""
    longest_retry: float = 120.0
    """Most seconds a client is told to stay away; the official SDK obeys no more."""
    drain_retry: float = 10.0
    """Advice in seconds while the server shuts down."""


class DrainRate:
    """Finished requests per second, a moving average over the time in which there was work."""

    def __init__(self, memory: float) -> None:
        """`memory`: seconds after which an observation weighs 1/e."""
        self._memory = memory
        self._busy = 0.0
        self._finished = 0.0

    def observe(self, busy: float, finished: int) -> None:
        """Take `busy` seconds with work that ended with `finished` requests done."""
        keep = math.exp(-busy / self._memory)
        self._busy = self._busy * keep + busy
        self._finished = self._finished * keep + finished

    @property
    def per_second(self) -> float | None:
        """The rate; None before the first request finished."""
        return self._finished / self._busy if self._finished and self._busy else None


class Ticket:
    """Places in the line, held until `release`."""

    def __init__(self, controller: AdmissionController, places: int) -> None:
        """Made by `AdmissionController.admit` only."""
        self._controller = controller
        self.places = places
        self.released = False

    def release(self, *, served: bool = True) -> None:
        """Give the places back. Idempotent. `served`: a slot was used, which counts as drain."""
        if not self.released:
            self.released = True
            self._controller._leave(self.places, served=served)  # noqa: SLF001 - two halves of one


class AdmissionController:
    """At most `slots + max_queue` places are held at a time. Belongs to the event loop."""

    def __init__(self, limits: AdmissionLimits, clock: Clock) -> None:
        """Start with an empty line."""
        self.limits = limits
        self.outstanding = 0
        """Places held by unreleased tickets."""
        self.draining = False
        self.counters: Counter[str] = Counter()
        """`admitted`, `released`, and refusals by error code, in requests."""
        self._clock = clock
        self._rate = DrainRate(limits.memory)
        self._since = clock.monotonic()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def capacity(self) -> int:
        """Most places there are."""
        return self.limits.slots + self.limits.max_queue

    def admit(self, places: int = 1) -> Ticket:
        """Take places now or raise `QueueFull` or `Draining`; never waits."""
        if self.draining:
            self.counters[Draining.code] += 1
            raise Draining(
                "The server is shutting down and takes no new requests.",
                retry_after=self.limits.drain_retry,
            )
        if self.outstanding + places > self.capacity:
            self.counters[QueueFull.code] += 1
            raise QueueFull(
                f"The waiting line is full: {self.outstanding} of {self.capacity} places are taken "
                f"({self.limits.slots} run at once). Try again later.",
                retry_after=self.retry_after(),
            )
        self._observe(0)
        self.outstanding += places
        self.counters["admitted"] += 1
        self._empty.clear()
        return Ticket(self, places)

    def retry_after(self) -> float:
        """Seconds in which the line as it stands should have drained, between 1 and the limit."""
        wait = self.expected_wait(max(1, self.outstanding - self.limits.slots))
        advice = self.limits.unmeasured_retry if wait is None else wait
        return min(max(advice, 1.0), self.limits.longest_retry)

    def expected_wait(self, position: int) -> float | None:
        """Seconds until the request at `position` (1 is next) gets a slot; None if unmeasured."""
        rate = self._rate.per_second
        return None if rate is None else position / rate

    def drain(self) -> None:
        """Refuse every later request."""
        self.draining = True

    async def drained(self) -> None:
        """Wait until nobody holds a place."""
        await self._empty.wait()

    def _leave(self, places: int, *, served: bool) -> None:
        self._observe(places if served else 0)
        self.outstanding -= places
        self.counters["released"] += 1
        if self.outstanding == 0:
            self._empty.set()

    def _observe(self, finished: int) -> None:
        now = self._clock.monotonic()
        if self.outstanding:
            self._rate.observe(now - self._since, finished)
        self._since = now
