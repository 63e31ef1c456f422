"""Where a prompt's first cells can come from: another slot, one that still computes them, host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.engine.eviction import LEAST_PARKED, MOST_COPIED, Eviction
from server.engine.host_memory import Entry, HostMemory
from server.engine.prefix_index import (
    MIN_AWAITED_ROWS,
    Match,
    Missed,
    find,
    reusable_tokens,
    why_missed,
)

if TYPE_CHECKING:
    from server.engine.sequence import Sequence as Running
    from server.engine.slots import Slot


class Sources:
    """Looks; changes nothing."""

    def __init__(
        self,
        slots: Sequence[Slot],
        host: HostMemory | None,
        eviction: Eviction,
        *,
        partial_removal: bool,
        sharing: bool,
        copying: bool,
        align: int,
    ) -> None:
        """`sharing`: slots can hold the same cells; `copying`: copies of another's. Else each keeps to its own."""
        self._slots = slots
        self._host = host
        self._eviction = eviction
        self._partial_removal = partial_removal
        self._sharing = sharing and partial_removal
        self._copying = copying and partial_removal and not sharing
        self._align = align

    def find(self, sequence: Running, idle: Sequence[Slot]) -> Match:
        """Look for what one that comes in could begin with, or wait for."""
        if not sequence.request.reuse_prefix and not sequence.preempted:
            return Match()
        align = self._align_of(sequence)
        if self._sharing or self._copying:
            # What has generated waits for nobody: no prompt is that long.
            turn = 0 if sequence.generated else float("inf")
            match = self._worth_it(find(self._slots, sequence, turn=turn, align=align))
            if match.source is not None or not self._copying:
                return match
            here = find(idle, sequence, align=align)
            return Match(here.cells, here.source, match.awaited, match.leader)
        return find(idle, sequence, partial_removal=self._partial_removal, align=align)

    def follow(self, sequence: Running) -> Match:
        """Look for what a running sequence that has computed nothing could have, or wait for."""
        return self._worth_it(find(self._slots, sequence, turn=sequence.turn, align=self._align))

    def parked(self, sequence: Running, match: Match) -> tuple[Entry | None, int]:
        """Return a prefix in host memory that is worth fetching beside what the slots have, and its cells to keep.

        It is in use from now on: until `HostMemory.release`.
        """
        host, request = self._host, sequence.request
        if host is None or not (request.reuse_prefix or sequence.preempted):
            return None, 0
        entry, common = host.find(request.cache_scope, sequence.key, request.public_tokens)
        if entry is None:
            return None, 0
        align, partial = self._align_of(sequence), self._partial_removal
        cells = reusable_tokens(sequence.key, entry.key, partial_removal=partial, align=align)
        if cells > common:  # what follows is another scope's
            cells = common // align * align if partial else 0
        gain = cells - match.cells
        if gain <= 0 or match.awaited >= cells + MIN_AWAITED_ROWS or not host.is_worth(entry, gain):
            return None, 0
        host.use(entry)
        return entry, cells

    def why_missed(self, sequence: Running) -> Missed:
        """Say why there was nothing."""
        evicted = self._eviction.remembers(sequence.request.cache_scope, sequence.key)
        able = self._sharing or self._copying
        return why_missed(self._slots, sequence, evicted=evicted, align=self._align, sharing=able)

    def copies(self, source: Slot, cells: int) -> bool:
        """Tell whether `cells` of another slot's may come into a slot of their own."""
        return self._sharing or (self._copying and _pays(cells, source.cells))

    def _worth_it(self, match: Match) -> Match:
        """Drop what would take longer to copy than to compute: llama.cpp copies all that a slot holds."""
        if not self._copying:
            return match
        leader, source = match.leader, match.source
        if leader is not None and not _pays(match.awaited, leader.prompt_length):
            match.leader, match.awaited = None, 0
        if source is not None and not _pays(match.cells, source.cells):
            match.source, match.cells = None, 0
        return match

    def _align_of(self, sequence: Running) -> int:
        """What a request keeps is a multiple of it. One that was preempted goes on with the row that was its next."""
        return 1 if sequence.generated else self._align


def _pays(cells: int, held: int) -> bool:
    """Whether to copy `held` cells for the sake of the first `cells`."""
    return cells >= LEAST_PARKED and cells * MOST_COPIED >= held
