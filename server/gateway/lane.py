"""The part of the line that wants one model's slots: its order, what its engine has, its pace.

The engine gets what can run now and as many more as there are slots, with ranks: a slot that
becomes free within a step has its next sequence at once, and a better one that comes later
overtakes those that wait in the engine. Who still yields to others of its flow is not looked ahead to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from server.core.clock import Clock
from server.core.errors import DeadlineUnreachable, QueueTimeout, Unavailable
from server.gateway.drain_rate import DrainRate
from server.gateway.fair_queue import FairQueue, Priority, Turn
from server.gateway.ticket import Hold, Outlook, Seat, SeatState, Standing, Ticket

if TYPE_CHECKING:
    from server.gateway.line import Line, LineLimits

_ALL = tuple(Priority)
_ANYBODY = Standing()
_YIELD = 6.0
"""For a second of prefill a request yields as many seconds to those of its flow that come later."""
_SMOOTHING = 8
"""A sequence's time in its slot weighs one in so many in the average."""


class Lane:
    """Belongs to the event loop.

    Who has a free slot of its model is let in however many wait for other models; those who wait
    share the `max_queue` places.
    """

    def __init__(self, line: Line, slots: int, clock: Clock) -> None:
        """Made by `Line.open_lane` only."""
        self.slots = slots
        self.outstanding = 0
        """Places held by unreleased tickets."""
        self.ended_places = 0
        """Of these, those whose sequences have ended: only their readers are not done."""
        self.held: Hold | None = None
        """Why nothing of this lane begins; None: it does."""
        self._line = line
        self._clock = clock
        self._order: FairQueue[Seat] = FairQueue(line.limits.aging)
        self._inside: dict[Seat, None] = {}
        """What the engine has and has not ended."""
        self._ahead: dict[Seat, None] = {}
        """Of these, those without a slot."""
        self._by_class: Counter[Priority] = Counter()
        """What is inside, by class."""
        self._rate = DrainRate(line.limits.memory)
        self._since = clock.monotonic()
        self._service: float | None = None
        """How long a sequence has its slot, on average; None before one has ended."""
        self._usual = 0.0
        """What such a sequence was estimated to cost."""
        self._pumping = False

    @property
    def _limits(self) -> LineLimits:
        return self._line.limits

    @property
    def waiting(self) -> int:
        """Places that wait for a slot of this model."""
        return max(0, self.outstanding - self.ended_places - self.slots)

    @property
    def queued(self) -> int:
        """Sequences that are ready and have no slot yet."""
        return len(self._order) + len(self._ahead)

    def queued_by_class(self) -> dict[Priority, int]:
        """Of these, how many there are of each class."""
        ahead = Counter(seat.priority for seat in self._ahead)
        return {one: self._order.count(one) + ahead[one] for one in Priority}

    @property
    def capacity(self) -> int:
        """Most places that one request can ever have here."""
        return self.slots + self._limits.max_queue

    def admit(
        self,
        places: int = 1,
        standing: Standing = _ANYBODY,
        *,
        deadline: float | None = None,
        cost: float | None = None,
    ) -> Ticket:
        """Take places now; never waits.

        `cost`: what is known of it already; None: nothing. Raises `QueueFull`, `Draining`, what a hold
        says, or `DeadlineUnreachable` for a deadline (monotonic seconds) that the line as it stands
        cannot meet. Who has no price yet counts as not there: the price tells who is first.
        """
        self._line.check(self, places, standing)
        if deadline is not None:
            own = self._usual if cost is None else cost
            key, weight, priority = standing.key, standing.weight, standing.priority
            turn = Turn(key, weight, priority, own, self._line.number(), self._clock.monotonic())
            self._order.foresee(turn)
            self._check_deadline(deadline, turn)
        self.outstanding += places
        self._line.entered(places, standing)
        return Ticket(self, standing, places, deadline)

    def hold(self, held: Hold | None) -> None:
        """Let nothing begin, or let it begin again. What has a slot goes on."""
        self._observe()
        self.held = held
        self._pump()

    def relimited(self) -> None:
        """Go by the line's new bounds."""
        self._order.aging = self._limits.aging
        self._pump()

    def overdue(self, message: str) -> Unavailable:
        """Return what to tell one who waited too long: `message`, or what holds the line up."""
        if self.held is not None:
            return self._line.sent_away(self.held)
        return QueueTimeout(message, retry_after=self.retry_after())

    def retry_after(self) -> float:
        """Seconds in which the line as it stands should have drained, between 1 and the limit."""
        wait = self.expected_wait(max(1, self.waiting))
        advice = self._limits.unmeasured_retry if wait is None else wait
        return min(max(advice, 1.0), self._limits.longest_retry)

    def expected_wait(self, position: int) -> float | None:
        """Seconds until the request at `position` (1 is next) gets a slot; None if unmeasured."""
        return self._rate.seconds(position)

    # Called by tickets

    def price(self, ticket: Ticket, costs: Sequence[float], prefill: float = 0.0) -> None:
        """Put a ticket's sequences into the order. Raises `DeadlineUnreachable`.

        `prefill`: seconds that its prompts should take; so the longer it yields to others of its flow.
        """
        now, standing = self._clock.monotonic(), ticket.standing
        yields = min(_YIELD * prefill, self._limits.passing)
        if ticket.deadline is not None:
            yields = min(yields, max(0.0, ticket.deadline - now) / 4)
        for index, cost in enumerate(costs):
            seat = Seat(
                standing.key,
                standing.weight,
                standing.priority,
                cost,
                self._line.number(),
                now,
                yields,
                ticket=ticket,
                index=index,
            )
            ticket.seats.append(seat)
            self._order.push(seat)
        if ticket.deadline is not None:
            self._check_deadline(ticket.deadline, ticket.seats[-1])
        self._pump()

    def started(self, seat: Seat) -> None:
        """A sequence has a slot."""
        seat.state, seat.started_at = SeatState.STARTED, self._clock.monotonic()
        del self._ahead[seat]
        self._order.started(seat)
        self._pump()

    def ended(self, seat: Seat) -> None:
        """A sequence has ended, with or without a slot."""
        self._take_out(seat)
        seat.ticket.places_ended += 1
        self.ended_places += 1
        self._pump()

    def leave(self, ticket: Ticket, cost: float | None) -> None:
        """Take a ticket out, wherever its sequences stand."""
        charged = 0.0
        for seat in ticket.seats:
            if seat.state is SeatState.WAITING:
                self._order.withdraw(seat)
            else:
                charged += 0.0 if seat.started_at is None else seat.cost
                self._take_out(seat)
        if cost is not None and charged:
            self._order.refund(ticket.seats[0], charged - cost)
        self.outstanding -= ticket.places
        self.ended_places -= ticket.places_ended
        self._line.left(ticket)
        self._pump()

    def outlook(self, ticket: Ticket) -> Outlook:
        """Count who comes before it: in the order, and in the engine without a slot."""
        waiting = self.queued
        if not ticket.seats:
            position = waiting + 1
            wait = None if self.held else self.expected_wait(position)
            return Outlook(position, position, wait)
        first = ticket.seats[0]
        ahead = self._before(first, waits=first.state is SeatState.WAITING)
        wait = None if self.held else self._seconds(ahead)
        return Outlook(len(ahead) + 1, max(waiting, len(ahead) + 1), wait)

    # Details

    def _before(self, turn: Turn, *, waits: bool) -> list[Seat]:
        """Return who gets a slot before it. `waits`: the engine does not have it."""
        rank = turn.rank
        ahead = [other for other in self._ahead if other.rank < rank]
        if waits:
            ahead += self._order.before(turn)
        return ahead

    def _seconds(self, ahead: Sequence[Seat]) -> float | None:
        """Estimate by what those ahead cost; whoever runs is taken for an average one."""
        own = self._rate.seconds(1)
        rest = self._rate.seconds(len(ahead), sum(seat.cost for seat in ahead)) if ahead else 0.0
        return None if own is None or rest is None else own + rest

    def _wait_of(self, turn: Turn) -> float | None:
        """Expected wait of one that the engine does not have; for slots that are free nobody waits.

        The engine makes those free, too, that batch work has, for better classes.
        """
        ahead = self._before(turn, waits=True)
        running = [seat for seat in self._inside if seat.state is SeatState.STARTED]
        if turn.priority is not Priority.BATCH:
            running = [one for one in running if one.aged or one.priority is not Priority.BATCH]
        free = max(0, self.slots - len(running))
        if len(ahead) < free:
            return 0.0
        return self._seconds(sorted(ahead, key=attrgetter("rank"))[free:])

    def _pump(self) -> None:
        """Hand the engine what may begin. What `begin` brings about is seen by the same loop."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while (found := self._next()) is not None:
                seat, aged = found
                self._order.take(seat, aged=aged)
                seat.state = SeatState.BEGUN
                self._observe()
                self._inside[seat] = self._ahead[seat] = None
                self._by_class[seat.priority] += 1
                self._line.began(seat.ticket)
                seat.ticket.begin(seat.index, seat.rank)
        finally:
            self._pumping = False

    def _next(self) -> tuple[Seat, bool] | None:
        if self.held is not None or not len(self._order):
            return None
        now = self._clock.monotonic()
        found = self._order.head(now, self._allowed())
        if found is None or len(self._inside) < self.slots:
            return found
        seat, aged = found
        if not aged and seat.place > (now, seat.number) and not self._displaces(seat):
            return None  # what the engine has is passed by nobody of its flow, and this one still yields
        if len(self._inside) < 2 * self.slots:
            return found
        # The engine has all it can look ahead to; only who would be among its next may join.
        rank = (-1, seat.start, seat.number) if aged else seat.rank
        sooner = sum(other.rank < rank for other in self._ahead)
        return found if sooner < self.slots else None

    def _displaces(self, seat: Seat) -> bool:
        """Whether the engine would make a slot free for it: batch work gives way."""
        batch = self._by_class[Priority.BATCH]
        return seat.priority is not Priority.BATCH and len(self._inside) - batch < self.slots

    def _allowed(self) -> tuple[Priority, ...]:
        """Return who may begin. For reserved slots, only interactive requests are looked ahead to."""
        reserved = min(self._limits.interactive_slots, self.slots - 1)
        others = len(self._inside) - self._by_class[Priority.INTERACTIVE]
        if reserved <= 0 or others < self.slots - reserved:
            return _ALL
        return (Priority.INTERACTIVE,)

    def _take_out(self, seat: Seat) -> None:
        """Count a sequence out of the engine. Once."""
        if seat.state is SeatState.ENDED:
            return
        started = seat.state is SeatState.STARTED
        seat.state = SeatState.ENDED
        self._observe(int(started), seat.cost if started else 0.0)
        del self._inside[seat]
        self._by_class[seat.priority] -= 1
        if seat.started_at is not None:
            self._measure(self._clock.monotonic() - seat.started_at, seat.cost)
            self._order.ended(seat)
        else:
            del self._ahead[seat]
            self._order.withdraw(seat)

    def _check_deadline(self, deadline: float, turn: Turn) -> None:
        """Raise `DeadlineUnreachable` unless its wait and its own work end by then.

        Its cost is a bound: what may take longer than the usual counts as usual.
        """
        wait, left = self._wait_of(turn), deadline - self._clock.monotonic()
        part = min(1.0, turn.cost / self._usual) if self._usual > 0 else 1.0
        needed = None if wait is None else wait + part * (self._service or 0.0)
        if left > 0 and (needed is None or needed <= left):
            return
        self._line.counters[DeadlineUnreachable.code] += 1
        told = "" if needed is None else f" It would take about {needed:.1f} s."
        raise DeadlineUnreachable(
            f"The request's deadline is in {left:.1f} s, too soon for its answer.{told}"
            if left > 0
            else "The request's deadline has passed.",
            retry_after=self.retry_after(),
        )

    def _measure(self, seconds: float, cost: float) -> None:
        if self._service is None:
            self._service, self._usual = seconds, cost
        else:
            self._service += (seconds - self._service) / _SMOOTHING
            self._usual += (cost - self._usual) / _SMOOTHING

    def _observe(self, finished: int = 0, cost: float = 0.0) -> None:
        """Count the time since the last change, if the engine had work. Before every change.

        A hold is no measure of the pace: what ends in it left slots that stayed empty.
        """
        now = self._clock.monotonic()
        if self._inside and self.held is None:
            self._rate.observe(now - self._since, finished, cost)
        self._since = now
