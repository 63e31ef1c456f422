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

    max_queue: int
    """How many may wait for a slot, all models together."""
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

    def __init__(self, lane: Lane, places: int) -> None:
        """Made by `Lane.admit` only."""
        self._lane = lane
        self.places = places
        self.released = False

    def release(self, *, served: bool = True) -> None:
        """Give the places back. Idempotent. `served`: a slot was used, which counts as drain."""
        if not self.released:
            self.released = True
            self._lane._leave(self.places, served=served)  # noqa: SLF001 - two halves of one


class Lane:
    """The part of the line that wants one model's slots. Belongs to the event loop.

    Who has a free slot of its model is let in however many wait for other models; those who wait
    share the `max_queue` places.
    """

    def __init__(self, controller: AdmissionController, slots: int, clock: Clock) -> None:
        """Made by `AdmissionController.open_lane` only."""
        self.slots = slots
        self.outstanding = 0
        """Places held by unreleased tickets."""
        self._controller = controller
        self._limits = controller.limits
        self._clock = clock
        self._rate = DrainRate(self._limits.memory)
        self._since = clock.monotonic()
        self._serving = True

    @property
    def waiting(self) -> int:
        """Places that wait for a slot of this model."""
        return max(0, self.outstanding - self.slots)

    @property
    def capacity(self) -> int:
        """Most places that one request can ever have here."""
        return self.slots + self._limits.max_queue

    def admit(self, places: int = 1) -> Ticket:
        """Take places now or raise `QueueFull` or `Draining`; never waits."""
        self._controller._check(self, places)  # noqa: SLF001 - two halves of one
        self._observe(0)
        self.outstanding += places
        return Ticket(self, places)

    def retry_after(self) -> float:
        """Seconds in which the line as it stands should have drained, between 1 and the limit."""
        wait = self.expected_wait(max(1, self.waiting))
        advice = self._limits.unmeasured_retry if wait is None else wait
        return min(max(advice, 1.0), self._limits.longest_retry)

    def expected_wait(self, position: int) -> float | None:
        """Seconds until the request at `position` (1 is next) gets a slot; None if unmeasured."""
        rate = self._rate.per_second
        return None if rate is None else position / rate

    def pause(self) -> None:
        """Leave out the time until `resume`, in which the model is not there, from the drain rate."""
        self._observe(0)
        self._serving = False

    def resume(self) -> None:
        """Count again."""
        self._observe(0)
        self._serving = True

    def _leave(self, places: int, *, served: bool) -> None:
        self._observe(places if served else 0)
        self.outstanding -= places
        self._controller._left()  # noqa: SLF001 - two halves of one

    def _observe(self, finished: int) -> None:
        now = self._clock.monotonic()
        if self.outstanding and self._serving:
            self._rate.observe(now - self._since, finished)
        self._since = now


class AdmissionController:
    """At most `max_queue` places wait for a slot at a time, over all lanes."""

    def __init__(self, limits: AdmissionLimits, clock: Clock) -> None:
        """Start with an empty line."""
        self.limits = limits
        self.draining = False
        self.counters: Counter[str] = Counter()
        """`admitted`, `released`, and refusals by error code, in requests."""
        self._clock = clock
        self._lanes: list[Lane] = []
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def outstanding(self) -> int:
        """Places held by unreleased tickets."""
        return sum(lane.outstanding for lane in self._lanes)

    @property
    def waiting(self) -> int:
        """Of these, the ones that wait for a slot."""
        return sum(lane.waiting for lane in self._lanes)

    def open_lane(self, slots: int) -> Lane:
        """Let requests for a further model in, which runs `slots` at once."""
        lane = Lane(self, slots, self._clock)
        self._lanes.append(lane)
        return lane

    def drain(self) -> None:
        """Refuse every later request."""
        self.draining = True

    async def drained(self) -> None:
        """Wait until nobody holds a place."""
        await self._empty.wait()

    def _check(self, lane: Lane, places: int) -> None:
        if self.draining:
            self.counters[Draining.code] += 1
            raise Draining(
                "The server is shutting down and takes no new requests.",
                retry_after=self.limits.drain_retry,
            )
        would_wait = max(0, lane.outstanding + places - lane.slots)
        if would_wait and self.waiting - lane.waiting + would_wait > self.limits.max_queue:
            self.counters[QueueFull.code] += 1
            raise QueueFull(
                f"The waiting line is full: {self.waiting} of {self.limits.max_queue} places are "
                f"taken ({lane.slots} requests run at once). Try again later.",
                retry_after=lane.retry_after(),
            )
        self.counters["admitted"] += 1
        self._empty.clear()

    def _left(self) -> None:
        self.counters["released"] += 1
        if self.outstanding == 0:
            self._empty.set()
