"""The slot pool: which sequence sits where, what it reserved, what idle slots still hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.cells import MOST_RUNS, Holdings, Run, merge
from server.engine.cooling import Cooling, CoolingLimits
from server.engine.eviction import MOST_COPIED_ALIKE, Eviction
from server.engine.host_memory import Entry, HostMemory
from server.engine.plan import Copy, MemoryEdit, Restore, Truncation
from server.engine.prefix_index import (
    ALIGN,
    MIN_AWAITED_ROWS,
    TOKEN_BYTES,
    Match,
    Missed,
    shareable,
    token_key,
)
from server.engine.sequence import Sequence
from server.engine.sources import Sources


@dataclass(slots=True, eq=False)
class Slot:
    """One llama sequence id. Idle slots keep the cells of what they computed last."""

    index: int
    sequence: Sequence | None = None
    reserved: int = 0
    """KV cells that the running sequence may come to use; 0 when idle."""
    key: bytes = b""
    """Idle: the tokens in its cells, one per cell. Running: the prompt's, computed or not."""
    scope: str = ""
    """The `cache_scope` of the request that runs, or ran last."""
    public: int = 0
    """So many of its first cells other scopes may have, too."""
    last_used: int = 0
    """Tick at which its cells were last of use to somebody."""
    eroded: int = 0
    """Idle: cells that were not worth a copy when they went, and count in the next decision, for the rest follows."""
    runs: list[Run] = field(default_factory=list)
    """Whose computation its cells are."""

    @property
    def cells(self) -> int:
        """KV cells that it holds: positions 0 … cells-1."""
        running = self.sequence
        return len(self.key) // TOKEN_BYTES if running is None else running.computed


@dataclass(slots=True)
class Placement:
    """A slot for a sequence, and what to do to memory, in this order, before it enters."""

    slot: Slot
    keep: int
    """Cells that it has from the start."""
    edits: list[MemoryEdit]
    match: Match
    missed: Missed | None
    """Why it shares nothing."""
    entry: Entry | None = None
    """Where it has its cells from, if that is host memory."""


class SlotPool:
    """A fixed set of slots over `kv_cells` cells.

    Invariant: cells reserved by running sequences + cells that only idle slots hold ≤ `kv_cells`. What a running
    sequence shares counts in full among what it reserved. Hence it always finds a cell, whoever of those that share
    with it ends, and a decode call never fails for lack of them.
    """

    def __init__(
        self,
        *,
        slots: int,
        kv_cells: int,
        partial_removal: bool = True,
        sharing: bool = False,
        copying: bool = False,
        host: HostMemory | None = None,
        align: int = ALIGN,
        cooling: CoolingLimits | None = None,
    ) -> None:
        """`partial_removal`: the memory can drop the end of a sequence.

        `sharing`: sequences can share cells; `copying`: if not, they can have copies. `host`: where prefixes go that
        have to make room, and come back from. `align`: reuse ends at multiples of it. `cooling`: what stays idle goes
        there unasked.
        """
        self.kv_cells = kv_cells
        self.slots = [Slot(index) for index in range(slots)]
        self.reserved_cells = 0
        self.idle_cells = 0
        """Cells that only idle slots hold, each counted once."""
        self._partial_removal = partial_removal
        self._sharing = sharing and partial_removal
        self._tick = 0
        self._eviction = Eviction(self.slots, host, partial_removal=partial_removal)
        self._sources = Sources(
            self.slots,
            host,
            self._eviction,
            partial_removal=partial_removal,
            sharing=sharing,
            copying=copying,
            align=align,
        )
        self._cooling: Cooling | None = None
        if host is not None and cooling is not None:
            self._cooling = Cooling(self.slots, self._eviction, cooling)

    def __repr__(self) -> str:
        """Show each slot as free, cached tokens, or the running request."""
        states = [
            slot.sequence.request.request_id
            if slot.sequence
            else (f"{slot.cells} cached" if slot.cells else "-")
            for slot in self.slots
        ]
        cells = f"{self.reserved_cells}+{self.idle_cells}/{self.kv_cells} cells"
        return f"<SlotPool {cells} [{', '.join(states)}]>"

    def acquire(self, sequence: Sequence) -> Placement | None:
        """Find a slot for `sequence` and reserve its cells; None while there is no slot or no room.

        It has the longest cached prefix of its scope from the start, whoever holds it, or gets a longer one from host
        memory, or waits for a longer one that is being computed, in the slot whose cells are worth least.
        """
        need = sequence.cells_needed
        if self.reserved_cells + need > self.kv_cells:
            return None
        idle = [slot for slot in self.slots if slot.sequence is None]
        if not idle:
            return None
        self._tick += 1
        match = self._sources.find(sequence, idle)
        entry, parked = self._sources.parked(sequence, match)
        if entry is not None:
            match = Match()
        missed = (
            None if match.source or match.leader or entry else self._sources.why_missed(sequence)
        )
        keep = 0 if match.leader else match.cells
        slot, edits = self._settle(sequence, idle, match, keep)
        slot.sequence, slot.reserved, slot.key = sequence, need, sequence.key
        slot.scope = sequence.request.cache_scope
        slot.public = sequence.request.public_tokens
        sequence.computed = keep or parked
        self.reserved_cells += need
        if len(slot.runs) > MOST_RUNS:
            merge(self.slots)
        # All of an entry comes in before its end goes again.
        more = 0 if entry is None else max(0, entry.cells - need)
        edits += self._evict(max(0, self.kv_cells - self.reserved_cells - more))
        if entry is not None:
            edits.append(Restore(slot.index, entry))
        return Placement(slot, sequence.computed, edits, match, missed)

    def restored(self, slot: Slot, cells: int) -> None:
        """Note that of the cells that a running slot was to get by a copy, there are at most `cells`."""
        if (sequence := slot.sequence) is not None:
            sequence.computed = min(sequence.computed, cells)
            sequence.cached = min(sequence.cached, cells)

    def share(self, sequence: Sequence, source: Slot, cells: int) -> list[MemoryEdit]:
        """Let a running sequence that has computed nothing yet take over `cells` of `source`."""
        slot = self.slots[sequence.slot]
        self._adopt(slot, source, cells)
        sequence.computed = cells
        if source.sequence is None:
            self.idle_cells = Holdings(self.slots).idle
        return [Copy(source.index, slot.index, cells)]

    def find(self, sequence: Sequence) -> Match:
        """Look for what a running sequence that has computed nothing could share, or wait for."""
        return self._sources.follow(sequence)

    def cut(self, slot: Slot) -> list[MemoryEdit]:
        """Note that the cells of a running slot end at `sequence.computed` now, earlier than they did.

        What it shared and computes again needs room of its own, for which idle slots may have to go.
        """
        self._continue(slot, slot.cells, Holdings(self.slots))
        return [
            Truncation(slot.index, slot.cells),
            *self._evict(self.kv_cells - self.reserved_cells),
        ]

    def lost(self, slot: Slot) -> None:
        """Note that a slot's cells, which nobody else held, are gone: what runs is computed again."""
        if slot.sequence is None:
            slot.key, slot.runs = b"", []
            self.idle_cells = Holdings(self.slots).idle
        else:
            slot.sequence.computed = 0
            slot.runs = [Run(0)]

    def release(self, slot: Slot) -> None:
        """Make `slot` idle; what its sequence computed stays cached."""
        sequence = slot.sequence
        if sequence is None:
            return
        self.reserved_cells -= slot.reserved
        slot.reserved = 0
        slot.key = _computed_key(sequence)
        slot.sequence, slot.eroded = None, 0
        self._tick += 1
        slot.last_used = self._tick
        self.idle_cells = Holdings(self.slots).idle

    def begin_step(self) -> None:
        """Forget what was copied in the last step."""
        self._eviction.begin_step()

    def cool(self, step: int) -> list[MemoryEdit]:
        """Move what has been idle for long out of the cache, while there is much of it; called before each step."""
        if self._cooling is None:
            return []
        edits = self._cooling.cool(self.idle_cells, step)
        if any(isinstance(edit, Truncation) for edit in edits):
            self.idle_cells = Holdings(self.slots).idle
        return edits

    def evict_idle(self) -> list[MemoryEdit]:
        """Empty all idle slots."""
        held = [slot for slot in self.slots if slot.sequence is None and slot.key]
        holdings = Holdings(self.slots)
        edits = [
            edit for slot in held for edit in self._eviction.cut(slot, 0, holdings.alone(slot))
        ]
        self.idle_cells = 0
        return edits

    def check_integrity(self) -> None:
        """Raise `RuntimeError` when the books do not balance. For tests and for an idle engine."""
        reserved = sum(slot.reserved for slot in self.slots)
        idle = Holdings(self.slots).idle
        problems = []
        if reserved != self.reserved_cells or idle != self.idle_cells:
            problems.append(f"sums differ: reserved {reserved}, idle {idle}")
        if reserved + idle > self.kv_cells:
            problems.append("overcommitted")
        for slot in self.slots:
            running = slot.sequence
            if running is None and slot.reserved:
                problems.append(f"slot {slot.index} is idle but reserves {slot.reserved}")
            if running is not None and (running.computed > slot.reserved or running.finished):
                problems.append(f"slot {slot.index} does not match {running!r}")
            starts = [run.start for run in slot.runs]
            if starts != sorted(set(starts)) or (slot.cells and starts[:1] != [0]):
                problems.append(f"slot {slot.index} has runs from {starts}")
        if problems:
            raise RuntimeError(f"{self!r}: {'; '.join(problems)}")

    # Choosing

    def _settle(
        self, sequence: Sequence, idle: list[Slot], match: Match, keep: int
    ) -> tuple[Slot, list[MemoryEdit]]:
        """Empty the idle slot whose cells are worth least but for `keep`, and put those there."""
        holdings = Holdings(self.slots)
        prefix = sequence.key[: keep * TOKEN_BYTES]

        def loss(slot: Slot) -> tuple[float, bool, int, int]:
            fits = keep > 0 and self._has(slot, sequence, prefix)
            lost = holdings.alone(slot, keep if fits else 0)
            if fits and lost < MIN_AWAITED_ROWS and not self._sharing:
                lost = 0  # for less than a copy costs
            value = lost / (1 + self._tick - slot.last_used)
            return value, not fits, slot.last_used, slot.index

        source = match.source if keep else None
        if source is not None and not self._sources.copies(source, keep):
            slot = source
        else:
            slot = min(idle, key=loss)
        if source is not None:
            source.last_used = self._tick
        edits: list[MemoryEdit] = []
        if keep and self._has(slot, sequence, prefix):
            # Of another conversation perhaps, that only begins alike.
            lost = holdings.alone(slot, keep)
            if lost * MOST_COPIED_ALIKE >= slot.cells:
                edits += self._eviction.park(slot, lost)
            self._continue(slot, keep, holdings)
            return slot, edits
        if slot.key:
            edits += self._eviction.cut(slot, 0, holdings.alone(slot))
        if source is None:
            slot.runs = [Run(0)]
        else:
            self._adopt(slot, source, keep)
            edits.append(Copy(source.index, slot.index, keep))
        return slot, edits

    def _has(self, slot: Slot, sequence: Sequence, prefix: bytes) -> bool:
        allowed = shareable(slot, sequence.request)
        return len(prefix) <= allowed * TOKEN_BYTES and slot.key.startswith(prefix)

    # Books

    def _adopt(self, slot: Slot, source: Slot, cells: int) -> None:
        """Let the empty `slot` hold the first `cells` of `source`, and compute on from there."""
        if not self._sharing:  # a copy, which nobody else has part in
            slot.runs = [Run(0)]
            return
        slot.runs = [run for run in source.runs if run.start < cells] + [Run(cells)]

    def _continue(self, slot: Slot, cells: int, holdings: Holdings) -> None:
        """Compute on from `cells`: in the last run if nobody else has part in it, for two would go different ways."""
        slot.runs = [run for run in slot.runs if run.start < cells]
        if not slot.runs or holdings.shared(slot.runs[-1]):
            slot.runs.append(Run(cells))

    def _evict(self, room: int) -> list[MemoryEdit]:
        edits, self.idle_cells = self._eviction.make_room(room)
        return edits


def _computed_key(sequence: Sequence) -> bytes:
    """Return the key of the tokens that a sequence has in the KV cache."""
    generated = sequence.tokens[len(sequence.key) // TOKEN_BYTES : sequence.computed]
    return sequence.key[: sequence.computed * TOKEN_BYTES] + token_key(generated)
