"""Machines of which it is known how long a decode call takes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from server.engine.pace import Work
from server.engine.plan import StepPlan, StepResult
from tests.factories import LoopHarness

Machine = Callable[[Work], float]


class Kind(NamedTuple):
    """Rows and seconds of calls, and what contexts add, 1 as on a CPU."""

    points: tuple[tuple[int, float], ...]
    contexts: float
    tile: int = 1
    """Rows from which attention costs a third, and fills whole tiles."""


CPU = Kind(
    ((0, 0.01), (1, 0.014), (4, 0.045), (16, 0.09), (64, 0.136), (132, 0.31), (2048, 5.2)), 1
)
TILED = Kind(
    ((0, 0.008), (1, 0.012), (4, 0.036), (16, 0.068), (64, 0.239), (128, 0.48), (2048, 7.7)), 1, 64
)
"""Two CPU cores, 0.6B: 63 rows at depth 1,400 took 1.07 s, 64 rows 0.49 s, 128 rows 1.05 s."""
GPU = Kind(((0, 0.019), (256, 0.021), (512, 0.030), (2048, 0.12)), 0.02)


def machine(kind: Kind, scale: float = 1.0) -> Machine:
    """Linear between the points, and what contexts add."""

    def seconds(work: Work) -> float:
        for (left, low), (right, high) in pairwise(kind.points):
            if work.rows <= right:
                base = low + (high - low) * (work.rows - left) / (right - left)
                contexts = 1e-5 * work.span + 0.5e-6 * work.attended
                if kind.tile > 1:
                    full = -(-work.rows // kind.tile) * kind.tile / work.rows
                    each = 8e-6 if work.rows < kind.tile else 2.7e-6 * full
                    contexts = each * work.attended
                return scale * (base + kind.contexts * contexts)
        raise AssertionError("more rows than the machine is described for")

    return seconds


def timed(harness: LoopHarness, truth: Machine) -> list[tuple[StepPlan, float | None]]:
    """Let decode calls take time on the harness's clock; return each with what was expected of it."""
    calls: list[tuple[StepPlan, float | None]] = []
    decode = harness.backend.decode

    def take_time(plan: StepPlan) -> StepResult:
        work = Work.of(plan.rows)
        calls.append((plan, harness.scheduler.pace.seconds(work)))
        harness.clock.now += truth(work)
        return decode(plan)

    harness.backend.decode = take_time  # type: ignore[method-assign]
    return calls
