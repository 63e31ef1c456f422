"""Which rows of a step llama.cpp computes together.

In the split layout without flash attention, each row of a call reads as many cells as the longest of its sequences
has: K and V of every stream up to there, whether they are in use or not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter

from server.engine.plan import CallShape, Rows
from server.llama.params import LlamaParams

Passes = Callable[[list[Rows]], int]
"""Rows of one call, sorted by slot → passes over the weights."""

Grouping = Callable[[list[Rows]], list[list[Rows]]]
"""Rows sorted by slot → calls, each sorted by slot."""

PADDING = 256
"""llama.cpp rounds the cells that a call reads up to a multiple of this."""
PASS_CELLS = 1280
"""Cells that one row reads in the time of one more pass over the weights (0.6B shape, two CPU cores: 11 ms). Both grow
with the model."""
ROWS_OF_ONE_READ = 5
"""Rows of one sequence that read its cells in the time of one: the cells stay in the CPU's cache meanwhile."""


def passes(rows: list[Rows], n_ubatch: int, *, unified: bool) -> int:
    """Count the graphs that llama.cpp computes for a call (src/llama-batch.cpp: `split_simple`, `split_equal`).

    In the split layout each has as many rows of every sequence, and only of those with consecutive slots.
    """
    if unified:
        return -(-sum(len(one.tokens) for one in rows) // n_ubatch)
    count = 0
    runs = _consecutive([(one.slot, len(one.tokens)) for one in rows])
    while runs:
        run = runs.pop()
        if len(run) > n_ubatch:
            runs.append(run[n_ubatch:])
            run = run[:n_ubatch]
        taken = min(max(1, n_ubatch // len(run)), *(left for _, left in run))
        runs += _consecutive([(slot, left - taken) for slot, left in run if left > taken])
        count += 1
    return count


def _consecutive(slots: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut ascending slots, each with its rows, where one is missing."""
    runs: list[list[tuple[int, int]]] = []
    for slot, left in slots:
        if not runs or slot != runs[-1][-1][0] + 1:
            runs.append([])
        runs[-1].append((slot, left))
    return runs


def grouping(params: LlamaParams, calls: CallShape) -> Grouping:
    """Return what a context made with `params` wants."""
    if params.row_by_row:
        # llama.cpp would compute a row of every stream of the split layout together.
        return one_by_one
    on_cpu = calls.chunk_rows > 1
    if on_cpu and not params.unified and not params.flash:
        return partial(by_depth, passes_of=partial(passes, n_ubatch=params.n_ubatch, unified=False))
    return together


def together(rows: list[Rows]) -> list[list[Rows]]:
    """One call."""
    return [rows]


def one_by_one(rows: list[Rows]) -> list[list[Rows]]:
    """One call for each."""
    return [[one] for one in rows]


def by_depth(rows: list[Rows], passes_of: Passes) -> list[list[Rows]]:
    """Calls that together read least, the shallow ones first: the best cuts between the depths that there are."""
    classes: dict[int, list[Rows]] = {}
    for one in rows:
        depth = -(-(one.start + len(one.tokens)) // PADDING) * PADDING
        classes.setdefault(depth, []).append(one)
    if len(classes) == 1:
        return [rows]
    depths = sorted(classes)
    before = [0.0]
    """Reads of all classes below."""
    for depth in depths:
        reads = (max(1.0, len(one.tokens) / ROWS_OF_ONE_READ) for one in classes[depth])
        before.append(before[-1] + sum(reads))
    best: list[tuple[float, list[list[Rows]]]] = [(0.0, [])]
    """Cells read up to a class, and the calls."""
    for end, depth in enumerate(depths, 1):
        found: list[tuple[float, int]] = []
        needed = _Needed(passes_of)
        for begin in reversed(range(end)):
            needed.add(classes[depths[begin]])
            cells = PASS_CELLS * needed.passes + (before[end] - before[begin]) * depth
            found.append((best[begin][0] + cells, begin))
        cells, begin = min(found)
        call = [one for depth in depths[begin:end] for one in classes[depth]]
        call.sort(key=attrgetter("slot"))
        best.append((cells, [*best[begin][1], call]))
    return best[-1][1]


class _Needed:
    """Passes of a call that grows. Of streams alone they are counted as they come: each run of slots is one."""

    def __init__(self, passes_of: Passes) -> None:
        self._passes_of = passes_of
        self._rows: list[Rows] = []
        self._slots: set[int] = set()
        self._runs = 0
        self._longest = 0

    def add(self, rows: list[Rows]) -> None:
        for one in rows:
            slot = one.slot
            self._runs += 1 - (slot - 1 in self._slots) - (slot + 1 in self._slots)
            self._slots.add(slot)
            self._longest = max(self._longest, len(one.tokens))
        self._rows += rows

    @property
    def passes(self) -> int:
        if self._longest == 1:
            return self._runs
        return self._passes_of(sorted(self._rows, key=attrgetter("slot")))
