"""Sequences that wait for a slot, in the order in which they get one."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
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
                self._sequences.remove(sequence)
                for other in self._sequences:
                    other.overtaken += other.arrival < sequence.arrival
                return sequence, found
            if sequence.overtaken >= MOST_OVERTAKES:
                break
        return None

    def _by_turn(self) -> list[Sequence]:
        """Return those first that were overtaken too often, the oldest of them before the others."""
        late = [one for one in self._sequences if one.overtaken >= MOST_OVERTAKES]
        if not late:
            return self._sequences
        late.sort(key=lambda one: one.arrival)
        return late + [one for one in self._sequences if one.overtaken < MOST_OVERTAKES]


def _rank(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.request.rank
