"""What idle slots give up when cells are needed, and what of it goes to host memory."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from server.engine.cells import Holdings, Run
from server.engine.host_memory import BLOCK, HostMemory
from server.engine.plan import MemoryEdit, Park, Truncation
from server.engine.prefix_index import ALIGN, TOKEN_BYTES

if TYPE_CHECKING:
    from server.engine.slots import Slot

LEAST_PARKED = BLOCK
"""Cells; what is shorter is computed again as fast."""

MOST_COPIED = 16
"""Cells copied for each one that would be lost, at most, before it is known what copying and computing take."""

MOST_COPIED_ALIKE = 4
"""The same where another request goes on from a slot's beginning, whatever was measured.

Mostly it is the same conversation that does: each turn would leave a copy in host memory that nobody comes for.
"""

MOST_BESIDE = 4096
"""Cells copied in a step beside those that would be lost, at most: all streams wait for it."""

REMEMBERED_HEAD = 32 * TOKEN_BYTES
REMEMBERED_EVICTIONS = 1024


class Eviction:
    """Cuts idle slots and keeps their books; what they lose is parked where that pays."""

    def __init__(
        self, slots: Sequence[Slot], host: HostMemory | None, *, partial_removal: bool
    ) -> None:
        """`host`: where to park; without it what goes is lost."""
        self._slots = slots
        self._host = host
        self._partial_removal = partial_removal
        self._evicted: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        """Scope and beginning of prefixes that nobody holds any more, the latest last."""
        self._beside = 0
        """Cells that this step copies and somebody else holds, too, or that stay."""

    def begin_step(self) -> None:
        """Forget what was copied in the last step."""
        self._beside = 0

    def remembers(self, scope: str, key: bytes) -> bool:
        """Tell whether what begins like `key` had to make room lately."""
        return (scope, key[:REMEMBERED_HEAD]) in self._evicted

    def cut(self, slot: Slot, keep: int, lost: int) -> list[MemoryEdit]:
        """Drop an idle slot's cells from `keep` on; `lost` of them nobody else holds."""
        edits = self.park(slot, lost)
        if not edits and keep == 0:
            self._evicted[slot.scope, slot.key[:REMEMBERED_HEAD]] = None
            if len(self._evicted) > REMEMBERED_EVICTIONS:
                self._evicted.popitem(last=False)
        slot.key = slot.key[: keep * TOKEN_BYTES]
        slot.runs = [run for run in slot.runs if run.start < keep]
        edits.append(Truncation(slot.index, keep))
        return edits

    def park(self, slot: Slot, lost: int) -> list[MemoryEdit]:
        """Copy an idle slot to host memory if that pays; `lost` of its cells go, and nobody else holds them."""
        beside = slot.cells - lost
        if self._beside and beside > max(0, MOST_BESIDE - self._beside):
            return []
        if not self.saves(slot, lost):
            return []
        self._beside += beside
        return [Park(slot.index, slot.scope, slot.key, slot.public)]

    def make_room(self, room: int) -> tuple[list[MemoryEdit], int]:
        """Cut idle slots until the cells that only they hold fit into `room`; return how many there are then.

        The ends that nobody shares go first, those not used for longest before others; then those that only idle
        slots share.
        """
        edits: list[MemoryEdit] = []
        while (excess := (holdings := Holdings(self._slots)).idle - room) > 0:
            held = [slot for slot in self._slots if slot.sequence is None and slot.key]
            held.sort(key=lambda slot: slot.last_used)
            freed = 0
            for slot in held:
                alone = holdings.alone(slot)
                if alone and freed < excess:
                    cells = slot.cells
                    keep = max(0, cells - min(alone, excess - freed)) // ALIGN * ALIGN
                    keep = keep if self._partial_removal else 0
                    freed += min(alone, cells - keep)
                    edits += self.cut(slot, keep, min(alone, cells - keep))
            if not freed:
                edits += self._cut_shared(held, holdings, excess)
        return edits, holdings.idle

    def saves(self, slot: Slot, lost: int) -> bool:
        """Decide whether the last `lost` cells of an idle slot, which no other holds, are worth a copy of all of it.

        What of them host memory has is not lost. Those that are not worth it are counted, for the caller drops them.
        """
        host = self._host
        if host is None or lost < LEAST_PARKED:
            return False
        _, kept = host.find(slot.scope, slot.key, slot.public)
        lost = min(lost, slot.cells - kept)
        if lost < LEAST_PARKED:
            return False
        if host.is_worth_saving(slot.cells, lost + slot.eroded, MOST_COPIED):
            return True
        slot.eroded += lost
        host.spare()
        return False

    def _cut_shared(
        self, held: Sequence[Slot], holdings: Holdings, excess: int
    ) -> list[MemoryEdit]:
        """Cut the end of a run that several idle slots hold and nobody goes on from, in all of them at once."""
        ending: dict[Run, list[Slot]] = {}
        needed: Counter[Run] = Counter()
        for slot in held:
            runs = [run for run in slot.runs if run.start < slot.cells]
            for run, after in pairwise(runs):
                needed[run] = max(needed[run], after.start)
            ending.setdefault(runs[-1], []).append(slot)
        for run in ending:
            needed[run] = max(needed[run], holdings.needed(run))
        leaves = [
            (run, slots)
            for run, slots in ending.items()
            if max(slot.cells for slot in slots) > needed[run]
        ]
        run, slots = min(leaves, key=lambda leaf: leaf[1][-1].last_used)
        slots.sort(key=lambda slot: -slot.cells)
        end = slots[0].cells
        keep = max(needed[run], end - excess) // ALIGN * ALIGN
        edits = self.cut(slots[0], keep, end - keep)
        for slot in slots[1:]:  # the first one's copy in host memory is theirs, too
            if slot.cells > keep:
                edits += self.cut(slot, keep, 0)
        return edits
