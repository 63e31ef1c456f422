"""A lane over an engine that only counts: what began, in which order, and what ends when told."""

from __future__ import annotations

from server.gateway.fair_queue import Priority
from server.gateway.lane import Lane
from server.gateway.line import Line, LineLimits
from server.gateway.ticket import Standing, Ticket
from tests.fakes import FakeClock


class Desk:
    """Requests by name on one lane. What begins takes a free slot at once, by rank."""

    def __init__(
        self, slots: int = 2, max_queue: int = 64, line: Line | None = None, **limits: float
    ) -> None:
        self.clock = FakeClock()
        self.line = line or Line(LineLimits(max_queue, **limits), self.clock)  # type: ignore[arg-type]
        if isinstance(self.line._clock, FakeClock):
            self.clock = self.line._clock
        self.lane: Lane = self.line.open_lane(slots)
        self.tickets: dict[str, Ticket] = {}
        self.engine: list[tuple[tuple[int, float, int], str, int]] = []
        """What the engine has without a slot."""
        self.running: list[tuple[str, int]] = []
        self.order: list[str] = []
        """Names in the order in which they got slots."""

    def enter(
        self,
        name: str,
        key: str = "",
        priority: Priority = Priority.NORMAL,
        *,
        places: int = 1,
        weight: float = 1.0,
        deadline: float | None = None,
    ) -> Ticket:
        """Take places only."""
        ticket = self.lane.admit(places, Standing(key, priority, weight), deadline=deadline)
        self.tickets[name] = ticket
        return ticket

    def ask(
        self,
        name: str,
        key: str = "",
        *args: Priority,
        cost: float = 100.0,
        prefill: float = 0.0,
        **kw,
    ) -> Ticket:
        """Enter and be priced."""
        ticket = self.enter(name, key, *args, **kw)
        ticket.price(
            [cost] * ticket.places,
            lambda index, rank: self.engine.append((rank, name, index)),
            prefill,
        )
        self.seat()
        return ticket

    def seat(self) -> None:
        """Give free slots by rank, as the engine does within a step."""
        while self.engine and len(self.running) < self.lane.slots:
            one = min(self.engine)
            self.engine.remove(one)
            self.running.append(one[1:])
            self.order.append(one[1])
            self.tickets[one[1]].note_started(one[2])

    def finish(self, name: str | None = None, seconds: float = 1.0) -> str:
        """End the sequence that runs longest, or one of `name`; its ticket goes with the last one."""
        self.clock.advance(seconds)
        one = next(run for run in self.running if name in (None, run[0]))
        self.running.remove(one)
        ticket = self.tickets[one[0]]
        ticket.note_ended(one[1])
        if ticket.places_ended == ticket.places:
            ticket.release()
        self.seat()
        return one[0]

    def cancel(self, name: str) -> None:
        """Give up, wherever it stands."""
        self.tickets[name].release()
        self.engine = [one for one in self.engine if one[1] != name]
        self.running = [one for one in self.running if one[0] != name]
        self.seat()
