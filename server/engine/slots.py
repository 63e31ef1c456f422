"""The slot pool: which sequence sits where, what it reserved, what idle slots still hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.plan import Truncation
from server.engine.prefix_index import reusable_tokens
from server.engine.sequence import Sequence


@dataclass(slots=True)
class Slot:
    """One llama sequence id. Idle slots keep the cells of what they computed last."""

    index: int
    sequence: Sequence | None = None
    reserved: int = 0
    """KV cells that the running sequence may come to use; 0 when idle."""
    tokens: list[int] = field(default_factory=list)
    """Idle: the tokens in its cells, one per cell."""
    scope: str = ""
    """Idle: the `cache_scope` of the request that computed them."""
    last_used: int = 0
    """Tick of the last release."""


class SlotPool:
    """A fixed set of slots over `kv_cells` cells.

    Invariant: cells reserved by running sequences + cells held by idle slots ≤ `kv_cells`. Hence a
    running sequence always finds a cell, and a decode call never fails for lack of them.
    """

    def __init__(self, *, slots: int, kv_cells: int, partial_removal: bool = True) -> None:
        """`partial_removal`: whether the memory can drop the end of a sequence."""
        self.kv_cells = kv_cells
        self.slots = [Slot(index) for index in range(slots)]
        self.reserved_cells = 0
        self.idle_cells = 0
        self._partial_removal = partial_removal
        self._tick = 0

    def __repr__(self) -> str:
        """Show each slot as free, cached tokens, or the running request."""
        states = [
            slot.sequence.request.request_id
            if slot.sequence
            else (f"{len(slot.tokens)} cached" if slot.tokens else "-")
            for slot in self.slots
        ]
        cells = f"{self.reserved_cells}+{self.idle_cells}/{self.kv_cells} cells"
        return f"<SlotPool {cells} [{', '.join(states)}]>"

    def acquire(self, sequence: Sequence) -> tuple[Slot, int, list[Truncation]] | None:
        """Find a slot for `sequence` and reserve its cells; None while there is no slot or no room.

        Takes the idle slot of its scope that shares the longest prefix, then the least recently
        used one. Returns the slot, the cells to keep in it, and the idle slots to empty first.
        """
        need = sequence.cells_needed
        idle = [slot for slot in self.slots if slot.sequence is None]
        if not idle or self.reserved_cells + need > self.kv_cells:
            return None
        slot, keep = self._choose(idle, sequence)
        self.idle_cells -= len(slot.tokens)
        slot.tokens = []
        slot.sequence = sequence
        slot.reserved = need
        self.reserved_cells += need
        return slot, keep, self._evict(self.kv_cells - self.reserved_cells)

    def release(self, slot: Slot) -> None:
        """Make `slot` idle; what its sequence computed stays cached."""
        sequence = slot.sequence
        if sequence is None:
            return
        self.reserved_cells -= slot.reserved
        slot.reserved = 0
        slot.sequence = None
        slot.tokens = sequence.tokens[: sequence.computed]
        slot.scope = sequence.request.cache_scope
        self.idle_cells += len(slot.tokens)
        self._tick += 1
        slot.last_used = self._tick

    def evict_idle(self) -> list[Truncation]:
        """Empty all idle slots."""
        return self._evict(0)

    def check_integrity(self) -> None:
        """Raise `RuntimeError` when the books do not balance. For tests and for an idle engine."""
        reserved = sum(slot.reserved for slot in self.slots)
        idle = sum(len(slot.tokens) for slot in self.slots)
        problems = []
        if reserved != self.reserved_cells or idle != self.idle_cells:
            problems.append(f"sums differ: reserved {reserved}, idle {idle}")
        if reserved + idle > self.kv_cells:
            problems.append("overcommitted")
        for slot in self.slots:
            running = slot.sequence
            if running is None and slot.reserved:
                problems.append(f"slot {slot.index} is idle but reserves {slot.reserved}")
            if running is not None and (
                slot.tokens or running.computed > slot.reserved or running.finished
            ):
                problems.append(f"slot {slot.index} does not match {running!r}")
        if problems:
            raise RuntimeError(f"{self!r}: {'; '.join(problems)}")

    def _choose(self, idle: list[Slot], sequence: Sequence) -> tuple[Slot, int]:
        request = sequence.request

        def reusable(slot: Slot) -> int:
            if not slot.tokens or not request.reuse_prefix or slot.scope != request.cache_scope:
                return 0
            return reusable_tokens(
                sequence.tokens, slot.tokens, partial_removal=self._partial_removal
            )

        keep, _, index = max((reusable(slot), -slot.last_used, -slot.index) for slot in idle)
        return self.slots[-index], keep

    def _evict(self, room: int) -> list[Truncation]:
        """Empty least recently used idle slots until the idle cells fit into `room`."""
        evicted = []
        for slot in sorted(
            (slot for slot in self.slots if slot.tokens), key=lambda slot: slot.last_used
        ):
            if self.idle_cells <= room:
                break
            self.idle_cells -= len(slot.tokens)
            slot.tokens = []
            evicted.append(Truncation(slot.index, 0))
        return evicted
