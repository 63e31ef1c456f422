"""Sequences that wait for a slot, in the order in which they get one."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from math import inf
from typing import TypeVar

from server.engine.sequence import Sequence

Found = TypeVar("Found")

MOST_OVERTAKES = 16
"""Who was overtaken so often is next, whatever its rank and whether there are cells for it yet."""


class Waitlist:
    """By rank, then by arrival. Nobody is overtaken without end."""

    def __init__(self) -> None:
        """Start empty."""
        self._sequences: list[Sequence] = []
        self._arrivals = 0
        self.next_deadline = inf
        """Monotonic time; nobody's deadline for a slot is before it."""

    def __len__(self) -> int:
        """Count who waits."""
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Yield who waits, by rank."""
        return iter(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """Let one wait."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        insort(self._sequences, sequence, key=_rank)
        deadline = sequence.request.deadline
        if deadline is not None:
            self.next_deadline = min(self.next_deadline, deadline)

    def overdue(self, now: float) -> list[Sequence]:
        """Return those who have had no slot by their deadline."""
        if now < self.next_deadline:
            return []
        due, later = [], [inf]
        for sequence in self._sequences:
            deadline = sequence.request.deadline
            if deadline is None or sequence.preemptions:
                continue
            if deadline > now:
                later.append(deadline)
            else:
                due.append(sequence)
        self.next_deadline = min(later)
        return due

    def put_back(self, sequence: Sequence) -> None:
        """Let one wait again, as who came when it did."""
        insort(self._sequences, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take one out, whoever is next."""
        self._sequences.remove(sequence)

    def take(
        self, acquire: Callable[[Sequence], Found | None], depth: int
    ) -> tuple[Sequence, Found] | None:
        """Take out the first for which `acquire` finds room, of the first `depth`.

        Whoever needs more cells than are free lets later ones pass, so that no slot idles for it,
        until it has been overtaken too often.
        """
        for sequence in self._by_turn()[:depth]:
            found = acquire(sequence)
            if found is not None:
                self.take_out(sequence)
                return sequence, found
            if sequence.overtaken >= MOST_OVERTAKES:
                break
        return None

    def take_out(self, sequence: Sequence) -> None:
        """Take out one that gets a slot now; those that came before it and wait were overtaken."""
        self._sequences.remove(sequence)
        for other in self._sequences:
            other.overtaken += other.arrival < sequence.arrival and not other.background

    def _by_turn(self) -> list[Sequence]:
        """Return those first that were overtaken too often, the oldest of them before the others."""
        late = [one for one in self._sequences if one.overtaken >= MOST_OVERTAKES]
        if not late:
            return self._sequences
        late.sort(key=lambda one: one.arrival)
        return late + [one for one in self._sequences if one.overtaken < MOST_OVERTAKES]


def _rank(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.request.rank
