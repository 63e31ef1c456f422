"""Carries out `Park` and `Restore`: cells between the backend and host memory."""

from __future__ import annotations

import logging
from collections import Counter

from server.core.clock import Clock
from server.engine.host_memory import HostMemory
from server.engine.interface import Backend
from server.engine.pins import Pins
from server.engine.places import Places
from server.engine.plan import Park, Restore
from server.engine.prefix_index import TOKEN_BYTES

log = logging.getLogger(__name__)


class Parking:
    """Saves and restores on the engine thread. What fails costs computing, and is counted; nobody's answer changes."""

    def __init__(
        self,
        backend: Backend,
        memory: HostMemory,
        pins: Pins,
        counters: Counter[str],
        clock: Clock,
    ) -> None:
        """Count in `counters`: prefixes and bytes, both ways."""
        self.places: Places | None = None
        """Told what is restored, where somebody wants to know which cells are in use."""
        self._pins = pins
        self._backend = backend
        self._memory = memory
        self._counters = counters
        self._clock = clock

    def park(self, edit: Park) -> bool:
        """Keep a slot's cells in host memory, where there is room; the slot still has them."""
        memory, cells = self._memory, len(edit.key) // TOKEN_BYTES
        nbytes = self._backend.state_bytes(edit.slot)
        if edit.pin and not self._pins.may_keep(edit.key, nbytes):
            return False
        if not memory.make_room(nbytes, edit.scope, edit.key, edit.public):
            self._counters["park_refused"] += 1
            if edit.pin:
                self._pins.refused(edit.key, nbytes)
            return False
        before = self._clock.monotonic()
        try:
            state = self._backend.save(edit.slot, cells)
        except (MemoryError, RuntimeError) as error:
            memory.give_back(nbytes)
            self._counters["park_failed"] += 1
            log.warning("A prefix of %d tokens was not saved: %s", cells, error)
            return False
        memory.measured_out(cells, self._clock.monotonic() - before)
        entry = memory.add(edit.scope, edit.key, state, edit.public)
        if self.places is not None:
            entry.order = self.places.order(edit.slot)
        if edit.pin:
            self._pins.keep(edit.key, entry)
        self._counters["parked"] += 1
        self._counters["bytes_parked"] += nbytes
        return True

    def restore(self, edit: Restore) -> int:
        """Fill a slot from host memory; return the cells that it has then: all of the entry's, or none."""
        state = edit.entry.state
        before = self._clock.monotonic()
        cells = self._backend.restore(edit.slot, state)
        self._memory.release(edit.entry)
        if cells == 0:
            self._counters["restore_failed"] += 1
            log.warning("A prefix of %d tokens was not restored, but is computed", state.cells)
            return 0
        if self.places is not None:
            self.places.restore(edit.slot, edit.entry.order)
        self._memory.measured(cells, self._clock.monotonic() - before)
        self._counters["restored"] += 1
        self._counters["bytes_restored"] += state.nbytes
        return cells
