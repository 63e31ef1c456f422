"""Which rows of a step llama.cpp computes together.

In the split layout without flash attention, each row of a call reads as many cells as the longest of its sequences
has: K and V of every stream up to there, whether they are in use or not.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from operator import attrgetter

from server.engine.plan import CallShape, Rows
from server.llama.params import LlamaParams

Grouping = Callable[[list[Rows]], list[list[Rows]]]
"""Rows sorted by slot → calls, each sorted by slot."""

PADDING = 256
"""llama.cpp rounds the cells that a call reads up to a multiple of this."""
PASS_CELLS = 1280
"""Cells that one row reads in the time of one more pass over the weights (0.6B shape, two CPU cores: 11 ms). Both grow
with the model."""
ROWS_OF_ONE_READ = 5
"""Rows of one sequence that read its cells in the time of one: the cells stay in the CPU's cache meanwhile."""


def grouping(params: LlamaParams, calls: CallShape) -> Grouping:
    """Return what a context made with `params` wants."""
    if params.row_by_row:
        # llama.cpp would compute a row of every stream of the split layout together.
        return one_by_one
    on_cpu = calls.chunk_rows > 1
    if on_cpu and not params.unified and not params.flash:
        return by_depth
    return together


def together(rows: list[Rows]) -> list[list[Rows]]:
    """One call."""
    return [rows]


def one_by_one(rows: list[Rows]) -> list[list[Rows]]:
    """One call for each."""
    return [[one] for one in rows]


def by_depth(rows: list[Rows]) -> list[list[Rows]]:
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
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    """Cells read up to a class, and the ends of the calls."""
    for end, depth in enumerate(depths, 1):
        cells, begin = min(
            (best[begin][0] + PASS_CELLS + (before[end] - before[begin]) * depth, begin)
            for begin in range(end)
        )
        best.append((cells, [*best[begin][1], end]))
    ends = best[-1][1]
    calls = []
    for begin, end in pairwise([0, *ends]):
        call = [one for depth in depths[begin:end] for one in classes[depth]]
        calls.append(sorted(call, key=attrgetter("slot")))
    return calls
