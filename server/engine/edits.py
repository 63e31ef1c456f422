"""Carries out on the backend what the scheduler says between two decode calls."""

from __future__ import annotations

import logging

from server.core.clock import Clock
from server.core.errors import GenerationFailed, OnegpuError
from server.engine.host_memory import HostMemory
from server.engine.interface import Backend
from server.engine.moving import Moving
from server.engine.parking import Parking
from server.engine.plan import (
    Admission,
    Copy,
    DecodeCode,
    Park,
    Restore,
    StepPlan,
    StepResult,
    Suspension,
    Truncation,
)
from server.engine.scheduler import Scheduler

log = logging.getLogger(__name__)


class Edits:
    """Samplers and cells, on the engine thread. What fails ends one request at most, or costs computing."""

    def __init__(
        self, backend: Backend, scheduler: Scheduler, memory: HostMemory | None, clock: Clock
    ) -> None:
        """`memory`: where prefixes are parked; None parks and moves nothing."""
        self._backend = backend
        self._scheduler = scheduler
        self._memory = memory
        self._clock = clock
        self._parking: Parking | None = None
        self.moving: Moving | None = None
        """Only where all slots share the cache."""
        if memory is not None:
            self._parking = Parking(backend, memory, scheduler.pins, scheduler.counters, clock)
            if backend.info.shares_cells and scheduler.limits.cold_steps:
                self.moving = Moving(backend, memory, scheduler, clock)
                self._parking.places = self.moving.places

    def admit(self, *, held: bool) -> None:
        """Edit memory as the scheduler says, which goes on from what came of each edit."""
        scheduler, parking = self._scheduler, self._parking
        if self._memory is not None:
            self._memory.trim()
        for edit in scheduler.admit(self._clock.monotonic(), held=held):
            match edit:
                case Copy():
                    self._copy(edit)
                case Park():
                    if parking is not None:
                        parking.park(edit)
                case Restore():
                    if parking is not None:
                        scheduler.restored(edit.slot, parking.restore(edit))
                case Suspension():
                    self._backend.set_aside(edit.slot, edit.request_id)
                case _:
                    self._truncate(edit)
                    if isinstance(edit, Admission):
                        self._open(edit)

    def close_finished(self) -> None:
        """Free the samplers of those who ended."""
        for slot in self._scheduler.take_closed():
            self._backend.close(slot)
        for request_id in self._scheduler.take_forgotten():
            self._backend.forget(request_id)

    def move(self) -> None:
        """Move a slot's cells down, if that has come to pay."""
        if self.moving is not None:
            self.moving.step()

    def computed(self, plan: StepPlan, result: StepResult) -> None:
        """Take what a decode call did, before the scheduler does."""
        if self.moving is not None:
            self.moving.places.computed(plan, result)
        if self._memory is not None and result.code is DecodeCode.OK:
            self._memory.row_seconds = self._scheduler.pace.prefill_row_seconds
            self._scheduler.counters["park_spared"] = self._memory.spared

    def _truncate(self, edit: Admission | Truncation) -> None:
        self._backend.truncate(edit.slot, edit.keep)
        if self.moving is not None:
            self.moving.places.keep(edit.slot, edit.keep)

    def _copy(self, edit: Copy) -> None:
        """Give a slot another's cells. Those that cannot be copied are computed."""
        scheduler, backend = self._scheduler, self._backend
        try:
            backend.copy(edit.source, edit.slot, edit.cells)
        except (MemoryError, RuntimeError) as error:
            log.warning("%d cells were not copied, but are computed: %s", edit.cells, error)
            scheduler.counters["copy_failed"] += 1
            scheduler.restored(edit.slot, 0)
        else:
            if self.moving is not None:
                self.moving.places.share(edit.source, edit.slot, edit.cells)
            scheduler.counters["copied_cells"] += 0 if backend.info.shares_cells else edit.cells

    def _open(self, edit: Admission) -> None:
        """Make a sampler. One that cannot be made ends its request alone."""
        scheduler = self._scheduler
        try:
            self._backend.open(edit.slot, edit.request)
        except OnegpuError as error:
            scheduler.fail(edit.request.request_id, error)
        except Exception as error:
            log.exception("No sampler for %s", edit.request.request_id)
            scheduler.fail(
                edit.request.request_id,
                GenerationFailed(f"The sampler could not be made: {error}"),
            )
        # Its slot may be given on at once: to close it later would take the next one's sampler.
        self.close_finished()
