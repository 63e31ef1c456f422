"""Which cells of a cache that all slots share hold whose tokens: a model of how the backend gives them out."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, repeat

from server.engine.plan import DecodeCode, StepPlan, StepResult


class Places:
    """Cells by number, as llama.cpp's unified cache has them: what comes gets the lowest free ones (`find_slot`).

    It starts to look where a cell was last given or, if that is lower, became free, so no free one lies below.
    """

    def __init__(self, slots: int, cells: int) -> None:
        """Nothing is held yet."""
        self.used = 0
        """Cells that some slot holds."""
        self._held = [array("i") for _ in range(slots)]
        """Slot → its cells, by position."""
        self._holders = array("i", bytes(4 * cells))
        self._taken = bytearray(cells)
        self._first = 0
        """No free cell is below."""
        self._above = 0
        """No cell from here on is held."""

    def take(self, slot: int, count: int) -> None:
        """Give a slot `count` more cells."""
        self._give(((self._held[slot], count),))

    def order(self, slot: int) -> array[int]:
        """Return a slot's positions in the order of their cells, in which they are saved."""
        held = self._held[slot]
        return array("i", sorted(range(len(held)), key=held.__getitem__))

    def restore(self, slot: int, order: Sequence[int]) -> None:
        """Give an empty slot cells for what was saved in this order."""
        self.take(slot, len(order))
        held = self._held[slot]
        for at, position in zip(held[:], order, strict=True):
            held[position] = at

    def _give(self, wanted: Iterable[tuple[array[int], int]]) -> None:
        holders, taken, at, given = self._holders, self._taken, self._first, 0
        for held, count in wanted:
            given += count
            for _ in repeat(None, count):
                at = taken.find(0, at)
                if at < 0:  # the cache is rounded up
                    at = len(taken)
                    taken.append(0)
                    holders.append(0)
                taken[at] = holders[at] = 1
                held.append(at)
                at += 1
        self._first = at
        self._above = max(self._above, at)
        self.used += given

    def keep(self, slot: int, count: int) -> None:
        """Let a slot hold its first `count` cells only."""
        held, holders = self._held[slot], self._holders
        for at in held[count:]:
            holders[at] -= 1
            if not holders[at]:
                self._taken[at] = 0
                self._first = min(self._first, at)
                self.used -= 1
        del held[count:]

    def share(self, source: int, slot: int, count: int) -> None:
        """Let the empty `slot` hold the first `count` cells of `source`, too."""
        self._held[slot] = self._held[source][:count]
        for at in self._held[slot]:
            self._holders[at] += 1

    def computed(self, plan: StepPlan, result: StepResult) -> None:
        """Take what a decode call did: drafts have cells until it is known what came true."""
        if result.code is DecodeCode.OK:
            held = self._held
            self._give((held[row.slot], len(row.tokens)) for row in plan.rows)
            if plan.draft_rows:
                drawn = (row for row in plan.rows if row.outputs)
                for row, samples in zip(drawn, result.samples, strict=True):
                    self.keep(row.slot, row.start + len(row.tokens) - row.outputs + len(samples))
        for slot, cells in result.cells.items():
            self.keep(slot, cells)
            self.take(slot, cells - len(self._held[slot]))

    @property
    def above(self) -> int:
        """No cell from here on is held: at least as high as the end of the highest one."""
        return self._above

    def ends(self) -> list[tuple[int, int]]:
        """Return the end of the highest cell of each slot that has any, with the slot, the highest first."""
        ends = [(max(held) + 1, slot) for slot, held in enumerate(self._held) if held]
        ends.sort(reverse=True)
        self._above = ends[0][0] if ends else 0
        return ends

    def cells(self, slot: int) -> tuple[int, ...]:
        """Return the cells of a slot, by position. For tests."""
        return tuple(chain(self._held[slot]))
