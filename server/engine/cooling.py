"""Idle cells tax every step of the unified layout: attention reads past them. So what stays idle leaves the cache.

On two CPU cores and a 0.6B shape a thousand idle cells add about 1 ms to a step, and to save and restore them takes
some 27 ms. Who moves them once that tax has added up to the move pays at most twice what the best choice would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.engine.cells import Holdings
from server.engine.eviction import LEAST_PARKED, Eviction
from server.engine.plan import MemoryEdit, Park

if TYPE_CHECKING:
    from server.engine.slots import Slot

_PAUSE = 32
"""Steps for which nobody looks again where nothing could be moved."""


@dataclass(frozen=True, slots=True)
class CoolingLimits:
    """When idle cells leave the cache."""

    after: int
    """Steps for which they stay idle first."""
    warm: int
    """Cells that may stay for good."""


@dataclass(slots=True)
class _Idle:
    """How long a slot's cells have been of use to nobody while there were too many."""

    last_used: int
    since: int
    """Step."""
    offered: bool = False
    """To host memory, which takes it or not."""


class Cooling:
    """Moves the coldest idle cells to host memory, one slot a step. What finds no room there stays in the cache.

    What is not worth a copy is dropped: to compute it again should take less than it has cost by now.
    """

    def __init__(self, slots: Sequence[Slot], eviction: Eviction, limits: CoolingLimits) -> None:
        """Nothing is cold yet."""
        self._slots = slots
        self._eviction = eviction
        self._limits = limits
        self._idle: dict[int, _Idle] = {}
        """By slot."""
        self._next_look = 0
        """Step."""

    def cool(self, idle_cells: int, step: int) -> list[MemoryEdit]:
        """Save one cold slot's cells, or drop what is saved or not worth it; `idle_cells`: only idle slots hold."""
        if idle_cells <= self._limits.warm:
            self._idle.clear()
            return []
        if step < self._next_look:
            return []
        cold = [slot for slot in self._slots if self._is_cold(slot, step)]
        if not cold:
            return []
        holdings = Holdings(self._slots)
        for slot in sorted(cold, key=lambda one: one.last_used):
            alone = holdings.alone(slot)
            if alone < LEAST_PARKED:
                continue
            if not self._eviction.saves(slot, alone):
                return self._eviction.cut(slot, slot.cells - alone, 0)
            idle = self._idle[slot.index]
            if not idle.offered:
                idle.offered = True
                return [Park(slot.index, slot.scope, slot.key, slot.public)]
        self._next_look = step + _PAUSE
        return []

    def _is_cold(self, slot: Slot, step: int) -> bool:
        if slot.sequence is not None or not slot.key:
            return False
        idle = self._idle.get(slot.index)
        if idle is None or idle.last_used != slot.last_used:
            idle = self._idle[slot.index] = _Idle(slot.last_used, step)
        return step - idle.since >= self._limits.after
