"""What becomes of the sequences of a decode call that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from operator import attrgetter

from server.core.errors import GenerationFailed, OnegpuError
from server.engine.plan import DecodeCode, MemoryEdit, StepPlan, StepResult
from server.engine.sequence import Sequence
from server.engine.slots import SlotPool

NO_CELLS_RETRIES = 4


class EngineFailure(RuntimeError):
    """Decode calls keep failing: the context cannot be trusted any more."""


class Recovery:
    """Ends as few sequences as it can, and none that can be computed again."""

    def __init__(
        self,
        pool: SlotPool,
        counters: Counter[str],
        fail: Callable[[str, OnegpuError], None],
        *,
        partial_removal: bool,
    ) -> None:
        """`fail` ends one request by an error."""
        self.no_cells = 0
        """How often in a row a call found no cells; each halves the prefill rows of the next."""
        self._pool = pool
        self._counters = counters
        self._fail = fail
        self._partial_removal = partial_removal
        self._failures = 0

    def succeeded(self) -> None:
        """Note a call that did not fail."""
        self.no_cells = self._failures = 0

    def failed(self, plan: StepPlan, result: StepResult) -> list[MemoryEdit]:
        """Take what went wrong; return memory edits. Raises `EngineFailure` when calls keep failing."""
        self._counters[f"decode_{result.code.name.lower()}"] += 1
        planned = [
            sequence
            for row in plan.rows
            if (sequence := self._pool.slots[row.slot].sequence) is not None
        ]
        match result.code:
            case DecodeCode.NO_CELLS:
                return self._make_room(planned)
            case DecodeCode.INVALID:
                error = GenerationFailed(
                    "The engine refused its own batch, a bug in the server. Please report it."
                )
                for sequence in planned:
                    self._fail(sequence.request.request_id, error)
                return []
            case _:
                self._failures += result.code is DecodeCode.FAILED
                if self._failures > 1:
                    message = "llama_decode failed twice in a row"
                    raise EngineFailure(message)
                return self._resynchronise(planned, result.cells)

    def _make_room(self, planned: list[Sequence]) -> list[MemoryEdit]:
        """Reservations make this impossible for known memories; never fail everyone for it.

        First empty the idle slots, then try with half the prefill rows, at last fail the youngest.
        """
        self.no_cells += 1
        evicted = self._pool.evict_idle()
        if not evicted and self.no_cells > NO_CELLS_RETRIES:
            self.no_cells = 0
            youngest = max(planned, key=attrgetter("turn"))
            error = GenerationFailed(
                "The KV cache has no room for this request although it was reserved. Try again."
            )
            self._fail(youngest.request.request_id, error)
        return evicted

    def _resynchronise(self, planned: list[Sequence], cells: dict[int, int]) -> list[MemoryEdit]:
        """After a call that was cut short: count the cells there are, redo the last of each."""
        edits: list[MemoryEdit] = []
        for sequence in planned:
            held = min(cells.get(sequence.slot, 0), len(sequence.tokens))
            sequence.computed = max(0, held - 1) if self._partial_removal else 0
            edits += self._pool.cut(self._pool.slots[sequence.slot])
        return edits
