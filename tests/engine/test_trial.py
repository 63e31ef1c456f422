"""Measuring a backend: what is computed, and what the clock sees."""

from __future__ import annotations

import pytest

from server.engine.limits import SchedulerLimits
from server.engine.plan import DecodeCode, StepPlan, StepResult
from server.engine.trial import Rates, TrialFailed, Workload, measure
from tests.factories import FakeClock, ScriptedBackend

LIMITS = SchedulerLimits(slots=4, n_ctx=128, kv_cells=512)
WORK = Workload(streams=3, depth=40, steps=5, chunk=16, chunk_decoding=8)


class Timed(ScriptedBackend):
    """A call takes a second, and a tenth for each row."""

    def __init__(self, clock: FakeClock, codes: dict[int, DecodeCode] | None = None) -> None:
        super().__init__(LIMITS, codes=codes)
        self.clock = clock

    def decode(self, plan: StepPlan) -> StepResult:
        self.clock.now += 1 + 0.1 * sum(len(rows.tokens) for rows in plan.rows)
        return super().decode(plan)


def test_rates_are_tokens_over_the_seconds_of_their_own_calls() -> None:
    clock = FakeClock()
    backend = Timed(clock)
    found = measure(backend, WORK, clock)
    # Prompts: 8 rows go before the clock runs; then 16 + 16, and 16 + 16 + 8 in the second slot.
    assert found.prefill == pytest.approx((2 * 40 - 8) / (5 + 7.2))
    assert found.single == pytest.approx(5 / (5 * 1.1))
    # Five chunks of 8 beside two streams.
    assert found.beside == pytest.approx(40 / (5 * (1 + 1.0)))
    assert found.all == pytest.approx(3 * 5 / (5 * 1.3))


def test_nothing_stays_behind_and_no_stream_outgrows_its_room() -> None:
    clock = FakeClock()
    backend = Timed(clock)
    measure(backend, WORK, clock)
    assert backend.cells == [[], [], [], []]
    assert backend.open_slots == {}
    most = max(rows.start + len(rows.tokens) for plan in backend.plans for rows in plan.rows)
    assert WORK.depth < most <= WORK.cells


def test_one_stream_has_nobody_beside_it() -> None:
    clock = FakeClock()
    found = measure(Timed(clock), Workload(1, 16, 2, 16, 8), clock)
    assert found == Rates(
        pytest.approx(8 / 1.8), None, pytest.approx(1 / 1.1), pytest.approx(1 / 1.1)
    )


def test_a_call_that_fails_ends_it_and_frees_the_slots() -> None:
    clock = FakeClock()
    backend = Timed(clock, {3: DecodeCode.NO_CELLS})
    with pytest.raises(TrialFailed, match="NO_CELLS"):
        measure(backend, WORK, clock)
    assert backend.cells == [[], [], [], []]
    assert backend.open_slots == {}
