"""Attention in a cache that all slots share reads up to the highest cell in use, so what stands high is moved down.

When a burst ends, whoever is left stands above the cells of those who went, and every step reads these. What a step
pays and what a copy takes compare as in `server.engine.cooling`; who moves once the tax has added up to the copy pays
at most twice what the best choice would have.
"""

from __future__ import annotations

import logging

from server.core.clock import Clock
from server.engine.cells import Holdings
from server.engine.host_memory import HostMemory
from server.engine.interface import Backend
from server.engine.places import Places
from server.engine.scheduler import Scheduler
from server.engine.slots import Slot

log = logging.getLogger(__name__)

LEAST_GAPS = 1024
"""Cells that are read for nothing: with fewer a step takes a few percent longer at most."""
LOOK = 16
"""Steps from one look to the next."""
_ROWS = 4
"""Streams of the step whose tax `cold_steps` was measured by; each row reads for itself."""
_PAUSE = 256
"""Steps for which nobody looks again where nothing could be moved."""
_DEAR = 3
"""So many times must a copy pay for which streams wait longer than they should for a step."""


class Moving:
    """Saves a slot's cells, drops them and restores them into the lowest free ones: at most one slot a step.

    A slot keeps its sampler and its positions. Cells that several slots hold stay, for each would get its own.
    """

    def __init__(
        self, backend: Backend, memory: HostMemory, scheduler: Scheduler, clock: Clock
    ) -> None:
        """`memory`: where the copy lies meanwhile; without free room there nothing is moved."""
        limits = scheduler.limits
        self.places = Places(limits.slots, limits.kv_cells)
        self._backend = backend
        self._memory = memory
        self._scheduler = scheduler
        self._limits = limits
        self._clock = clock
        self._looked = 0
        """Step."""
        self._next = 0
        self._tax = 0
        """Cells that rows have read for nothing, summed over streams and steps."""

    def step(self) -> None:
        """Move a slot if that has come to pay; called between a step's edits and its plan."""
        now = self._scheduler.counters["steps"]
        if now < self._next:
            return
        passed, self._looked, self._next = now - self._looked, now, now + LOOK
        used = self.places.used
        gain, slots = self._plan(used) if self.places.above - used >= LEAST_GAPS else (0, [])
        if not slots:
            self._tax = 0
            return
        self._tax += gain * passed * len(self._scheduler.running)
        cells, price = sum(slot.cells for slot in slots), self._limits.cold_steps * _ROWS
        if self._tax < cells * price * self._times(slots[0]):
            return
        self._tax -= slots[0].cells * price
        self._next = now + (1 if self._move(slots[0]) else _PAUSE)

    def _plan(self, used: int) -> tuple[int, list[Slot]]:
        """Return by how many cells the end comes down if some slots move, and these: as few as bring half of it all."""
        pool = self._scheduler.pool
        ends = self.places.ends()
        holdings, highest = Holdings(pool.slots), self.places.above
        if highest - used < LEAST_GAPS:
            return 0, []
        slots: list[Slot] = []
        for (_, index), (below, _) in zip(ends, [*ends[1:], (0, 0)], strict=True):
            slot = pool.slots[index]
            if holdings.alone(slot) < slot.cells:
                break
            slots.append(slot)
            # As many as are used are free or theirs below `used`.
            gain = highest - max(below, used)
            if 2 * gain >= highest - used:
                return gain, slots
        return 0, []

    def _times(self, slot: Slot) -> int:
        gap = self._limits.target_gap
        seconds = self._memory.moving_seconds(slot.cells)
        return _DEAR if gap is not None and seconds is not None and seconds > gap else 1

    def _move(self, slot: Slot) -> bool:
        nbytes = self._backend.state_bytes(slot.index)
        if not self._memory.borrow(nbytes):
            return False
        try:
            return self._copy(slot.index, slot.cells)
        finally:
            self._memory.give_back(nbytes)

    def _copy(self, slot: int, cells: int) -> bool:
        """Move the cells. What cannot be restored is computed again, and counted."""
        backend, clock, counters = self._backend, self._clock, self._scheduler.counters
        begin = clock.monotonic()
        try:
            state = backend.save(slot, cells)
        except (MemoryError, RuntimeError) as error:
            log.warning("%d cells were not moved: %s", cells, error)
            return False
        saved = clock.monotonic()
        order = self.places.order(slot)
        backend.truncate(slot, 0)
        self.places.keep(slot, 0)
        held = backend.restore(slot, state) or backend.restore(slot, state)
        if not held:
            log.warning("%d cells were lost when they were moved, and are computed again", cells)
            pool = self._scheduler.pool
            counters["move_failed"] += 1
            counters["recomputed_rows"] += cells if pool.slots[slot].sequence is not None else 0
            pool.lost(pool.slots[slot])
            return False
        self.places.restore(slot, order)
        self._memory.measured_out(cells, saved - begin)
        self._memory.measured(cells, clock.monotonic() - saved)
        counters["moved_cells"] += cells
        return True
