"""Who holds which KV cells, where sequences share their beginnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.engine.sequence import Sequence as Running
    from server.engine.slots import Slot

MOST_RUNS = 4
"""Of a slot, before runs are merged."""


class Run:
    """Cells at consecutive positions from `start`, computed by one slot.

    Others may hold its beginning. A slot's runs follow each other: each ends where the next starts, the last one at
    the slot's last cell. Whoever holds a cell holds all cells before it that its computation saw.
    """

    __slots__ = ("start",)

    def __init__(self, start: int) -> None:
        """Begin at position `start`."""
        self.start = start


def merge(slots: Sequence[Slot]) -> None:
    """Make one run of two that nobody tells apart: all who hold cells of the first hold some of the second.

    A conversation that is copied from slot to slot would get a run with every turn.
    """
    holders = Counter(run for slot in slots for run in slot.runs if run.start < slot.cells)
    for slot in slots:
        runs = slot.runs
        slot.runs = runs[:1] + [
            run for before, run in pairwise(runs) if holders[before] != holders[run]
        ]


def cells_beside(
    slots: Sequence[Slot], sequences: Iterable[Running], others: Iterable[Running]
) -> int:
    """Count the cells of running `sequences` that are in runs of which `others` hold nothing, each once."""
    known = {run for other in others for run in slots[other.slot].runs}
    longest: dict[Run, int] = {}
    for sequence in sequences:
        end = sequence.computed
        for run in reversed(slots[sequence.slot].runs):
            if run.start >= end:
                continue
            if run not in known:
                longest[run] = max(longest.get(run, 0), end - run.start)
            end = run.start
    return sum(longest.values())


class Holdings:
    """Who holds what, as of now: built anew after every change."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        """Look at all slots once."""
        self._ends: dict[Run, tuple[int, int]] = {}
        """Run → where its longest holder ends, and the second longest."""
        ends = self._ends
        self._running: dict[Run, int] = {}
        running = self._running
        idle: dict[Run, int] = {}
        for slot in slots:
            longest = idle if slot.sequence is None else running
            end = slot.cells
            for run in reversed(slot.runs):
                start = run.start
                if start >= end:
                    continue
                most, second = ends.get(run, (start, start))
                if end > most:
                    ends[run] = end, most
                elif end > second:
                    ends[run] = most, end
                if end > longest.get(run, 0):
                    longest[run] = end
                end = start
        self.idle = sum(
            end - start for run, end in idle.items() if end > (start := running.get(run, run.start))
        )
        """Cells that only idle slots hold, each counted once."""

    def alone(self, slot: Slot, keep: int = 0) -> int:
        """Cells of `slot` at positions ≥ `keep` that nobody else holds. They are its last ones."""
        end, count = slot.cells, 0
        for run in reversed(slot.runs):
            if run.start >= end:
                continue
            second = self._ends[run][1]
            count += max(0, end - max(second, keep))
            if second > run.start:
                break
            end = run.start
        return count

    def shared(self, run: Run) -> bool:
        """Whether several slots hold cells of `run`."""
        return self._ends[run][1] > run.start

    def needed(self, run: Run) -> int:
        """Where the longest running holder of `run` ends; where it starts, if none runs."""
        return self._running.get(run, run.start)
