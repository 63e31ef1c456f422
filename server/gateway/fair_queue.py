"""In which order those who wait for one model start: pure, without a clock of its own.

Three classes, the better one first. Within a class start-time fair queuing between flows (Goyal,
Vin, Cheng, 1996): each turn gets a start tag, at least the virtual time and at least the finish tag
of its flow's turn before it; the least start tag goes first, and virtual time is the tag of what
started last. A flow with little to do is served next, however much another one has queued.

Within a flow a turn may yield: it stands as if it had arrived so much later. Who arrives later than
that never passes it.

Costs are estimates. When the true one is known, or a turn is withdrawn, the tags of those that wait
behind it in its flow are corrected: a flow is charged what it used, and keeps its order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import Generic, TypeVar

Rank = tuple[int, float, int]
"""Class, start tag, number of arrival; the least one goes first."""

_AGED_SHARE = 4
"""Of so many starts one may be of a class that has waited too long."""


class Priority(IntEnum):
    """The less, the sooner."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2


@dataclass(slots=True, eq=False)
class Turn:
    """One sequence that is ready to start."""

    flow: str
    """Whom it is counted for: a key."""
    weight: float
    """Share of its flow; twice the weight gets twice the service under contention."""
    priority: Priority
    cost: float
    """Estimated service; the unit does not matter, as long as all use the same."""
    number: int
    """Order of arrival."""
    arrived: float
    """Monotonic seconds."""
    yields: float = 0.0
    """Seconds; who arrives in its flow within them, and yields less, goes first."""
    start: float = 0.0
    floor: float = 0.0
    """Virtual time at its arrival: its start tag is no less."""
    aged: bool = False
    """Taken before better classes because its own had waited too long."""

    @property
    def rank(self) -> Rank:
        """Its place in the order, against others of the same queue."""
        return (-1 if self.aged else int(self.priority), self.start, self.number)

    @property
    def place(self) -> tuple[float, int]:
        """Its place among the turns of its flow."""
        return (self.arrived + self.yields, self.number)


T = TypeVar("T", bound=Turn)


@dataclass(slots=True)
class _Flow(Generic[T]):
    """One flow within a class."""

    waiting: list[T] = field(default_factory=list)
    """By place."""
    start: float = 0.0
    """Start tag of its last turn that was taken."""
    finish: float = 0.0
    """Finish tag of that turn, less what its turns did not use."""
    live: int = 0
    """Turns that wait, were taken, or are being served."""

    def index(self, turn: Turn) -> int:
        """Return where it stands, or would stand."""
        return bisect_left(self.waiting, turn.place, key=_place)

    def least(self, index: int) -> float:
        """Return the least start tag of a turn that stands there."""
        if index == 0:
            return max(self.start, self.finish)
        before = self.waiting[index - 1]
        return before.start + before.cost / before.weight


_place = attrgetter("place")


class _Class(Generic[T]):
    """The waiting turns of one priority."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, int, T]] = []
        """Sorted by start tag."""
        self.by_age: dict[int, T] = {}
        self.flows: dict[str, _Flow[T]] = {}
        self.virtual = 0.0
        self.live = 0
        """Turns that wait, were taken, or are being served."""

    def tag(self, turn: Turn) -> None:
        """Set its tags as those of a turn that arrives now.

        Floors belong to places: to let one of its own pass costs a flow nothing against others.
        """
        turn.floor = turn.start = self.virtual
        if (flow := self.flows.get(turn.flow)) is not None:
            index = flow.index(turn)
            if index < len(flow.waiting):
                turn.floor = flow.waiting[index].floor
            turn.start = max(turn.floor, flow.least(index))

    def push(self, turn: T) -> None:
        self.tag(turn)
        flow = self.flows.setdefault(turn.flow, _Flow())
        index = flow.index(turn)
        flow.waiting.insert(index, turn)
        behind = flow.waiting[index + 1 :]
        for one, floor in zip(behind, [*(b.floor for b in behind[1:]), self.virtual], strict=False):
            one.floor = floor
        flow.live += 1
        self.live += 1
        insort(self.waiting, (turn.start, turn.number, turn))
        self.by_age[turn.number] = turn
        self._correct(flow, index + 1)

    def take(self, turn: T) -> None:
        """Take out a waiting turn, the first one of its flow."""
        self._remove(turn)
        flow = self.flows[turn.flow]
        flow.start, flow.finish = turn.start, turn.start + turn.cost / turn.weight

    def started(self, turn: T) -> None:
        self.virtual = max(self.virtual, turn.start)

    def withdraw(self, turn: T) -> None:
        """Take out a turn that waits or was taken."""
        if turn.number in self.by_age:
            self._remove(turn)
            self._correct(self.flows[turn.flow])
        else:
            self.refund(turn, turn.cost)
        self.forget(turn)

    def refund(self, turn: T, cost: float) -> None:
        """Charge its flow less for what comes after it."""
        flow = self.flows.get(turn.flow)
        if flow is not None:
            flow.finish -= cost / turn.weight
            self._correct(flow)

    def forget(self, turn: T) -> None:
        """Count one less, and drop tags that cannot matter: memory follows the line."""
        self.live -= 1
        self.flows[turn.flow].live -= 1
        if self.live == 0:
            self.flows.clear()
        elif len(self.flows) > 2 * self.live + 64:
            kept = self.flows.items()
            self.flows = {n: one for n, one in kept if one.live or one.finish > self.virtual}

    def _remove(self, turn: T) -> None:
        del self.by_age[turn.number]
        flow = self.flows[turn.flow]
        del flow.waiting[flow.index(turn)]
        del self.waiting[bisect_left(self.waiting, (turn.start, turn.number))]

    def _correct(self, flow: _Flow[T], index: int = 0) -> None:
        """Set the start tags of those that wait anew, from `index` on; they stay in order."""
        least, moved = flow.least(index), False
        for turn in flow.waiting[index:]:
            start = max(turn.floor, least)
            moved = moved or start != turn.start
            turn.start, least = start, start + turn.cost / turn.weight
        if moved:
            self.waiting = sorted((one.start, one.number, one) for _, _, one in self.waiting)


class FairQueue(Generic[T]):
    """The order of one model's line. A turn is pushed, taken, started, ended; or withdrawn."""

    def __init__(self, aging: float) -> None:
        """`aging`: seconds after which a class that waits gets one start in four."""
        self.aging = aging
        self._classes: dict[Priority, _Class[T]] = {one: _Class() for one in Priority}
        self._since_aged = _AGED_SHARE

    def __len__(self) -> int:
        """Count the turns that wait."""
        return sum(len(one.waiting) for one in self._classes.values())

    def count(self, priority: Priority) -> int:
        """Count those of one class."""
        return len(self._classes[priority].waiting)

    def push(self, turn: T) -> None:
        """Let a turn wait; its start tag is set here."""
        self._classes[turn.priority].push(turn)

    def foresee(self, turn: Turn) -> None:
        """Set the tags that a turn would have; it does not wait."""
        self._classes[turn.priority].tag(turn)

    def head(self, now: float, allowed: Collection[Priority]) -> tuple[T, bool] | None:
        """Return who is next among the allowed classes, and whether it goes first by its age."""
        filled = [p for p in Priority if p in allowed and self._classes[p].waiting]
        if not filled:
            return None
        first, *lower = filled
        if lower and self._since_aged >= _AGED_SHARE - 1:
            ages = {p: next(iter(self._classes[p].by_age.values())).arrived for p in lower}
            oldest = min(lower, key=ages.__getitem__)
            if now - ages[oldest] >= self.aging:
                return self._classes[oldest].waiting[0][2], True
        return self._classes[first].waiting[0][2], False

    def take(self, turn: T, *, aged: bool) -> None:
        """Take out a turn that `head` named."""
        self._classes[turn.priority].take(turn)
        turn.aged = aged
        self._since_aged = 0 if aged else self._since_aged + 1

    def started(self, turn: T) -> None:
        """Tell that a turn that was taken is being served."""
        self._classes[turn.priority].started(turn)

    def ended(self, turn: T) -> None:
        """Tell that a turn that started has been served."""
        self._classes[turn.priority].forget(turn)

    def withdraw(self, turn: T) -> None:
        """Take back a turn that has not started, waiting or taken; its flow is not charged."""
        self._classes[turn.priority].withdraw(turn)

    def refund(self, turn: T, cost: float) -> None:
        """Tell that a turn took less service than estimated, by `cost`."""
        self._classes[turn.priority].refund(turn, cost)

    def before(self, turn: Turn) -> Iterator[T]:
        """Yield the waiting turns that rank before `turn`, in no special order.

        Of its own flow, if it does not wait itself, those are left out that would move behind it.
        """
        rank = turn.rank
        for priority in Priority:
            for _, _, other in self._classes[priority].waiting:
                if other.rank >= rank:
                    break
                own = other.flow == turn.flow and priority is turn.priority
                if not own or other.place < turn.place:
                    yield other
