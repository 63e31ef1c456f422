"""A request's way through the line: a place, a price, a start, and one way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from server.core.errors import Unavailable
from server.gateway.fair_queue import Priority, Rank, Turn

if TYPE_CHECKING:
    from server.gateway.lane import Lane

Begin = Callable[[int, Rank], None]
"""Hands sequence number i to the engine, with what orders it there. Must not raise."""


@dataclass(frozen=True, slots=True)
class Standing:
    """As whom a request waits."""

    key: str = ""
    """Empty: nobody in particular."""
    priority: Priority = Priority.NORMAL
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing that waits begins, for a reason beyond the line."""

    error: Callable[[], Unavailable]
    """Makes what is told to whom it sends away."""
    shut: bool
    """Whether newcomers are sent away at once; else they may wait."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where a request stands among the sequences that have no slot yet."""

    position: int
    """1 is next."""
    waiting: int
    seconds: float | None
    """Expected wait; None while nothing was measured, or nothing begins."""


class SeatState(IntEnum):
    """It only moves down this list."""

    WAITING = 0
    BEGUN = 1
    """The engine has it, and a slot it has not."""
    STARTED = 2
    ENDED = 3


@dataclass(slots=True, eq=False, kw_only=True)
class Seat(Turn):
    """One sequence of a ticket, in the order of its lane."""

    ticket: Ticket
    index: int
    state: SeatState = SeatState.WAITING
    started_at: float | None = None


class Ticket:
    """Places in the line. `release` belongs in a `finally`; everything is void after it."""

    def __init__(self, lane: Lane, standing: Standing, places: int, deadline: float | None) -> None:
        """Made by `Lane.admit` only. `deadline`: monotonic seconds, for the whole answer."""
        self.standing = standing
        self.places = places
        self.deadline = deadline
        self.seats: list[Seat] = []
        """One per place, from `price` on."""
        self.begin: Begin = _nothing
        self.started = False
        self.places_ended = 0
        """Sequences that have ended."""
        self.released = False
        self._lane = lane

    def price(self, costs: Sequence[float], begin: Begin, prefill: float = 0.0) -> None:
        """Join the order. `begin` is called once per sequence, now or later.

        `costs`: estimated service of each sequence; `prefill`: seconds that the prompts take together.
        Raises `DeadlineUnreachable`; the ticket must be released all the same.
        """
        if len(costs) != self.places or self.seats:
            message = f"{len(costs)} costs for {self.places} places, or priced twice"
            raise ValueError(message)
        if not self.released:
            self.begin = begin
            self._lane.price(self, costs, prefill)

    def note_started(self, index: int) -> None:
        """Sequence `index` has a slot."""
        if not self.released and self.seats[index].state is SeatState.BEGUN:
            self.started = True
            self._lane.started(self.seats[index])

    def note_ended(self, index: int) -> None:
        """Sequence `index` has ended: its slot can have another, whoever still reads the answer."""
        if not self.released and self.seats[index].state in (SeatState.BEGUN, SeatState.STARTED):
            self._lane.ended(self.seats[index])

    def outlook(self) -> Outlook | None:
        """Where it stands; None once it has a slot, or is gone."""
        return None if self.started or self.released else self._lane.outlook(self)

    def release(self, *, cost: float | None = None) -> None:
        """Give the places back. Idempotent; the only way out of the line.

        `cost`: the service that it really took, in the unit of `price`; None: as estimated.
        """
        if not self.released:
            self.released = True
            self._lane.leave(self, cost)


def _nothing(_index: int, _rank: Rank) -> None:
    """Stand in for the `begin` of a ticket that has no price yet."""
