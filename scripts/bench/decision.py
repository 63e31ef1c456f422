"""What a scheduling decision costs: who gets the slot that became free, what it shares, the next plan.

The worst case for the search: every slot, running or idle, begins with the same 1,400 tokens, and continues on its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench import paced
from server.core.request import GenerationRequest
from server.engine.limits import SchedulerLimits
from server.engine.plan import Sample, StepResult
from server.engine.scheduler import Scheduler

SHARED_TOKENS = 1400
OWN_TOKENS = 60
N_VOCAB = 256


def decisions(slots: int, rounds: int, *, idle: float = 0.5) -> Sequence[float]:
    """Return the seconds of `admit` and `plan` in steps that let one request in; `idle`: part of the slots."""
    limits = SchedulerLimits(slots=slots, n_ctx=4096, kv_cells=slots * 4096, max_rows=slots + 512)
    scheduler = Scheduler(limits, paced.Bytes(), sharing=True)
    shared = [index % N_VOCAB for index in range(SHARED_TOKENS)]
    seconds = []
    for number in range(2 * slots + rounds):
        own = [(number * 7 + index * index) % N_VOCAB for index in range(OWN_TOKENS)]
        scheduler.add(GenerationRequest(f"r{number}", shared + own, 1000), 0.0)
        begin = time.perf_counter()
        list(scheduler.admit(0.0))
        plan = scheduler.plan()
        seconds.append(time.perf_counter() - begin)
        while any(sequence.generated == 0 for sequence in scheduler.running):
            if plan is not None:
                samples = [[Sample(1)] for row in plan.rows if row.outputs]
                scheduler.apply(plan, StepResult(samples=samples), 0.0)
            list(scheduler.admit(0.0))
            plan = scheduler.plan()
        while len(scheduler.running) > slots * (1 - idle):
            oldest = min(scheduler.running, key=lambda sequence: sequence.turn)
            scheduler.abort(oldest.request.request_id, 0.0)
        scheduler.take_events()
        scheduler.take_closed()
    return seconds[2 * slots :]
