"""Which prompt rows a step computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter

from server.engine.limits import SchedulerLimits
from server.engine.plan import Rows
from server.engine.prefix_index import MIN_PREFILL_ROWS, chunk_rows
from server.engine.sequence import Sequence


def prefill_budget(limits: SchedulerLimits, decode_rows: int, halvings: int) -> int:
    """Return the prefill rows that a step may have beside `decode_rows`.

    `halvings`: how often calls in a row found no cells.
    """
    most = limits.prefill_rows_decoding if decode_rows else limits.prefill_rows
    return max(min(limits.max_rows - decode_rows, most) >> halvings, MIN_PREFILL_ROWS)


def prefill_rows(prefilling: Iterable[Sequence], budget: int) -> Iterator[Rows]:
    """Yield chunks of at most `budget` rows together, in the order of admission."""
    for sequence in sorted(prefilling, key=attrgetter("turn")):
        start, length = sequence.computed, len(sequence.tokens)
        count = chunk_rows(start, length, budget)
        if count == 0:
            break
        budget -= count
        end = start + count
        yield Rows(sequence.slot, start, sequence.tokens[start:end], outputs=int(end == length))
