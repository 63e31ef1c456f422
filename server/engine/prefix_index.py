"""Which cached tokens a new prompt can take over.

Reuse is cut down to multiples of `ALIGN` and at least `ALIGN` prompt tokens are computed again:
with that, chunked and reused runs group their rows as a fresh run does, which keeps Q8_0 KV
bitwise equal.
"""

from __future__ import annotations

from collections.abc import Sequence

ALIGN = 8
"""Rows; prefill chunks end, and reuse ends, at multiples of it."""

MIN_PREFILL_ROWS = 2 * ALIGN
"""With this budget or more `chunk_rows` always makes progress, wherever the chunk starts."""


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Count equal tokens at the start of both, by slice comparisons in C."""
    limit = min(len(left), len(right))
    if limit == 0 or left[0] != right[0]:
        return 0
    if left[:limit] == right[:limit]:
        return limit
    same, different = 1, limit
    while different - same > 1:
        middle = (same + different) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            different = middle
    return same


def reusable_tokens(prompt: Sequence[int], cached: Sequence[int], *, partial_removal: bool) -> int:
    """Return how many cells that hold `cached` a request for `prompt` may keep.

    Without `partial_removal` (recurrent memories) a cached sequence is taken whole or not at all.
    """
    common = common_prefix_length(prompt, cached)
    if not partial_removal:
        return common if common == len(cached) and common < len(prompt) else 0
    return max(0, min(common, len(prompt) - ALIGN)) // ALIGN * ALIGN


def chunk_rows(start: int, end: int, budget: int) -> int:
    """Rows of `start` … `end` to prefill now, at most `budget`, leaving `ALIGN` or more, or none.

    Zero when a budget below `MIN_PREFILL_ROWS` does not reach the next multiple of `ALIGN`.
    """
    if end - start <= budget:
        return end - start
    stop = min(start + budget, end - ALIGN) // ALIGN * ALIGN
    return max(0, stop - start)
