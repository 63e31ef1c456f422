"""The one waiting line: how many may wait, over all models, and whose places are whose.

A request takes places when it enters (`Lane.admit`), is priced once its tokens are counted
(`Ticket.price`), begins when its lane says so, and leaves in `Ticket.release`, whatever happened.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass

from server.core.clock import Clock
from server.core.errors import Draining, QueueFull, Unavailable
from server.gateway.lane import Lane
from server.gateway.ticket import Hold, SeatState, Standing, Ticket

_SHARE = 8
"""A key, and one model of several, may hold so many times the places that are free, no more: the
last ones are for others."""


@dataclass(frozen=True, slots=True)
class LineLimits:
    """Bounds of the line and of the advice given to those it refuses. Times are in seconds."""

    max_queue: int
    """How many may wait for a slot, all models together."""
    interactive_slots: int = 0
    """Slots of each model that only interactive requests may take."""
    aging: float = 15.0
    """Wait after which a class gets one start in four, whatever better classes want."""
    passing: float = 60.0
    """No request is passed by one of its key and class that came so much later; 0: order of arrival."""
    memory: float = 60.0
    """Busy time over which the drain rate is averaged."""
    unmeasured_retry: float = 10.0
    """Advice while nothing has been measured."""
    longest_retry: float = 120.0
    """Longest time a client is told to stay away; the official SDK obeys no more."""
    drain_retry: float = 10.0
    """Advice while the server shuts down."""


class Line:
    """At most `max_queue` places wait for a slot at a time, over all lanes."""

    def __init__(self, limits: LineLimits, clock: Clock) -> None:
        """Start with an empty line."""
        self.limits = limits
        self.draining = False
        self.counters: Counter[str] = Counter()
        """`admitted`, `released`, and refusals by error code, in requests."""
        self._clock = clock
        self._lanes: list[Lane] = []
        self._unbegun: Counter[str] = Counter()
        """Sequences by key that the engine does not have yet; keys without any are left out."""
        self._numbers = itertools.count()
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

    def close_lane(self, lane: Lane) -> None:
        """Forget a lane that nobody holds a place of."""
        self._lanes.remove(lane)

    def relimit(self, limits: LineLimits) -> None:
        """Have other bounds from now on; who waits already stays."""
        self.limits = limits
        for lane in self._lanes:
            lane.relimited()

    def drain(self) -> None:
        """Refuse every later request."""
        self.draining = True

    async def drained(self) -> None:
        """Wait until nobody holds a place."""
        await self._empty.wait()

    # Called by lanes

    def number(self) -> int:
        """Return the next number of arrival."""
        return next(self._numbers)

    def check(self, lane: Lane, places: int, standing: Standing) -> None:
        """Raise `Draining`, `QueueFull` or what a hold says where so many more may not enter."""
        if self.draining:
            self.counters[Draining.code] += 1
            raise Draining(
                "The server is shutting down and takes no new requests.",
                retry_after=self.limits.drain_retry,
            )
        if lane.held is not None and lane.held.shut:
            raise self.sent_away(lane.held)
        if (told := self._obstacle(lane, places, standing)) is not None:
            self._refuse(lane, told)

    def turn_away(self, standing: Standing) -> None:
        """Raise as `check` does where not one more place is to be had, whatever the model.

        Of several models' times to come back the soonest is told.
        """
        if self.draining or all(self._obstacle(lane, 1, standing) for lane in self._lanes):
            self.check(min(self._lanes, key=Lane.retry_after), 1, standing)

    def entered(self, places: int, standing: Standing) -> None:
        """Count a ticket in."""
        self.counters["admitted"] += 1
        self._unbegun[standing.key] += places
        self._empty.clear()

    def began(self, ticket: Ticket, places: int = 1) -> None:
        """Count sequences out of those that the engine does not have."""
        key = ticket.standing.key
        self._unbegun[key] -= places
        if not self._unbegun[key]:
            del self._unbegun[key]

    def left(self, ticket: Ticket) -> None:
        """Count a ticket out."""
        self.counters["released"] += 1
        begun = sum(seat.state is not SeatState.WAITING for seat in ticket.seats)
        if begun < ticket.places:
            self.began(ticket, ticket.places - begun)
        if self.outstanding == 0:
            self._empty.set()

    def sent_away(self, hold: Hold) -> Unavailable:
        """Count one that a hold sends away; return its error."""
        error = hold.error()
        self.counters[error.code] += 1
        return error

    def _obstacle(self, lane: Lane, places: int, standing: Standing) -> str | None:
        """Return why so many more may not wait; None: they may, or need not."""
        busy = lane.outstanding - lane.ended_places
        would_wait = max(0, busy + places - lane.slots)
        if not would_wait:
            return None
        waiting, limit = self.waiting, self.limits.max_queue
        if waiting - lane.waiting + would_wait > limit:
            return (
                f"The waiting line is full: {waiting} of {limit} places are taken "
                f"({lane.slots} requests run at once). Try again later."
            )
        most = _SHARE * (limit - waiting)
        if standing.key and self._unbegun[standing.key] >= most:
            return "This key has its share of the waiting line. Try again later."
        if len(self._lanes) > 1 and lane.waiting >= most:
            return "This model has its share of the waiting line. Try again later."
        return None

    def _refuse(self, lane: Lane, message: str) -> None:
        if lane.held is not None:
            raise self.sent_away(lane.held)
        self.counters[QueueFull.code] += 1
        raise QueueFull(message, retry_after=lane.retry_after())
