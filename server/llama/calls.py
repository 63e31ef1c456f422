"""Which rows of a step llama.cpp computes together.

In the split layout without flash attention, each row of a call reads as many cells as the longest of its sequences
has: K and V of every stream up to there, whether they are in use or not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter, itemgetter

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
    left = {one.slot: len(one.tokens) for one in rows}
    count = 0
    while left:
        first = min(left)
        slots = [first]
        while (following := slots[-1] + 1) in left and len(slots) < n_ubatch:
            slots.append(following)
        most = max(1, n_ubatch // len(slots))
        taken = min(most, *(left[slot] for slot in slots))
        left = {slot: rest for slot, n in left.items() if (rest := n - taken * (slot in slots))}
        count += 1
    return count


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
        found: list[tuple[float, list[list[Rows]]]] = []
        for begin in range(end):
            call = sorted(
                (one for depth in depths[begin:end] for one in classes[depth]),
                key=attrgetter("slot"),
            )
            cells = PASS_CELLS * passes_of(call) + (before[end] - before[begin]) * depth
            found.append((best[begin][0] + cells, [*best[begin][1], call]))
        best.append(min(found, key=itemgetter(0)))
    return best[-1][1]
