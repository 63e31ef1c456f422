"""Who gives up its slot to a request of a better class. It waits again at its rank, and goes on where it stood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from server.engine.sequence import BACKGROUND
from server.engine.sequence import Sequence as Running
from server.engine.slots import SlotPool
from server.engine.waitlist import MOST_OVERTAKES

PREEMPTIBLE = 2
"""Class, the first part of a rank, from which on sequences make room for better ones: batch work."""

MOST_PREEMPTIONS = 4
"""Of one sequence; from then on it keeps its slot."""

LEAST_PROGRESS = 32
"""Tokens that a sequence computes beyond where it stood before it is preempted again."""


class Preemption:
    """Chooses; the scheduler acts. What a victim has computed is a cached prefix like any other."""

    def __init__(self, pool: SlotPool) -> None:
        """`pool`: where slots and cells are short."""
        self._pool = pool

    def next(
        self, waiting: Iterable[Running], running: Sequence[Running]
    ) -> tuple[Running, list[Running]] | None:
        """Return who is to have a slot now although none is free, and whose it gets; None: nobody.

        `waiting`: by rank. Who goes first by its age counts as of a better class than the background only.
        """
        for sequence in waiting:
            if sequence.background:
                break
            victims = self._victims(sequence, running)
            if victims:
                return sequence, victims
            if sequence.request.rank[0] >= 0:
                break
        return None

    def _victims(self, sequence: Running, running: Sequence[Running]) -> list[Running]:
        """Return as few as make room for `sequence`, the last by rank first; none where all are not enough."""
        pool = self._pool
        own = sequence.request.rank[0]
        rank = BACKGROUND if own < 0 else max(own + 1, PREEMPTIBLE)
        worse = [one for one in running if one.request.rank[0] >= rank and _may_go(one)]
        room = pool.kv_cells - pool.reserved_cells - sequence.cells_needed
        slots = len(pool.slots) - len(running)
        victims = []
        for one in sorted(worse, key=_rank, reverse=True):
            if slots > 0 and room >= 0:
                break
            victims.append(one)
            room += one.cells_needed
            slots += 1
        return victims if slots > 0 and room >= 0 else []


def _may_go(sequence: Running) -> bool:
    """Whether it was not preempted too often or just now. Nobody waits for what runs in the background."""
    often = sequence.preemptions >= MOST_PREEMPTIONS or sequence.overtaken >= MOST_OVERTAKES
    progress = sequence.computed - sequence.stood
    again = sequence.preemptions == 0 or progress >= LEAST_PROGRESS
    return sequence.background or (again and not often)


def _rank(sequence: Running) -> tuple[int, float, int]:
    return sequence.request.rank
