"""What a prompt will take to compute: asked on the event loop, about what the engine thread has.

Nothing is locked. Read are attributes that the engine thread replaces whole (a slot's key, scope and public
part, the learned seconds of a row) and, by `dict.get` alone, the tree of what is in host memory; nothing that
changes is iterated. So each look finds some value that was true; two of them may be a step apart, and then the
estimate is off. It orders who waits, and decides nothing else.
"""

from __future__ import annotations

from server.core.request import GenerationRequest
from server.engine.host_memory import HostMemory
from server.engine.prefix_index import reusable_tokens, shareable, token_key
from server.engine.scheduler import Scheduler

UNMEASURED_ROW = 0.0025
"""Seconds that a prompt row is taken to need before any was computed: a small model on a CPU."""


def prefill_seconds(
    request: GenerationRequest, scheduler: Scheduler | None, memory: HostMemory | None
) -> float:
    """Estimate what computing the prompt takes, less what is cached, computed just now, or in host memory."""
    row = None if scheduler is None else scheduler.pace.prefill_row_seconds
    rows = len(request.prompt)
    if scheduler is not None and request.reuse_prefix:
        rows -= _cached(request, scheduler, memory)
    return rows * (UNMEASURED_ROW if row is None else row)


def _cached(request: GenerationRequest, scheduler: Scheduler, memory: HostMemory | None) -> int:
    key = token_key(request.prompt)
    longest = 0
    for slot in scheduler.pool.slots:
        if slot.key[:4] == key[:4] and (most := shareable(slot, request)):
            cells = reusable_tokens(key, slot.key, partial_removal=True)
            longest = max(longest, int(min(cells, most)))
    if memory is not None:
        kept = memory.agreeing(request.cache_scope, key, request.public_tokens)
        longest = max(longest, min(kept, len(request.prompt)))
    return longest
