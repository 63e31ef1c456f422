"""A stand-in for a backend whose slots share one cache: it knows cells, and what reading and copying them takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from bench.paced import Paced
from server.engine.interface import HostState
from server.engine.places import Places
from server.engine.plan import CallShape, Sample, StepPlan, StepResult

_PADDING = 256


class Settable(Protocol):
    """A clock that its owner sets."""

    now: float


@dataclass(frozen=True)
class _State:
    cells: int
    nbytes: int


class PricedBackend(Paced):
    """Prices of a 0.6B shape on two CPU cores, flash attention: ARCHITECTURE.md has the measurements."""

    copy_seconds = 12e-6
    """Of a cell, each way."""
    row_tax, prompt_row_tax = 0.25e-6, 0.15e-6
    """Seconds for each cell up to the highest one in use."""
    own_cell = 8e-6
    """Seconds for each cell of a row's own context."""
    cell_bytes = 115_000

    def __init__(self, slots: int, cells: int, clock: Settable) -> None:
        """Begin with an empty cache."""
        super().__init__(0.0, 0.0)
        calls = CallShape(tile_rows=64, chunk_rows=64)
        self.info = replace(self.info, calls=calls, shares_cells=True, saves_cells=True)
        self.places = Places(slots, cells)
        self.busy = self.gaps = 0.0
        """Seconds of steps, and of these what reading free cells took."""
        self._clock = clock

    def truncate(self, slot: int, keep: int) -> None:
        """Keep the first cells."""
        self.places.keep(slot, keep)

    def copy(self, source: int, slot: int, cells: int) -> None:
        """Share cells."""
        self.places.share(source, slot, cells)

    def state_bytes(self, slot: int) -> int:
        """Return what a copy would take."""
        return self.cell_bytes * len(self.places.cells(slot))

    def save(self, slot: int, cells: int) -> HostState:
        """Take the time."""
        self._clock.now += self.copy_seconds * cells
        return _State(cells, self.state_bytes(slot))

    def restore(self, slot: int, state: HostState) -> int:
        """Take the time and the lowest free cells."""
        self._clock.now += self.copy_seconds * state.cells
        self.places.take(slot, state.cells)
        return state.cells

    def decode(self, plan: StepPlan) -> StepResult:
        """Take the time; sample what never repeats itself for long."""
        result = StepResult(
            samples=[[Sample(97 + row.start % 20)] for row in plan.rows if row.outputs]
        )
        self.places.computed(plan, result)
        highest = max((end for end, _ in self.places.ends()), default=0)
        prompts = sum(len(row.tokens) for row in plan.rows) - plan.decode_rows
        tax = plan.decode_rows * self.row_tax + prompts * self.prompt_row_tax
        own = sum(row.start for row in plan.rows if len(row.tokens) == 1)
        rows = plan.decode_rows + prompts
        seconds = 0.012 + 0.008 * min(rows, 8) + 0.0025 * max(0, rows - 8) + own * self.own_cell
        read, used = _padded(highest), _padded(self.places.used)
        self.busy += seconds + tax * read
        self.gaps += tax * (read - used)
        self._clock.now += seconds + tax * read
        return result


def _padded(cells: int) -> int:
    return max(_PADDING, -(-cells // _PADDING) * _PADDING)
