"""Measuring a backend: what is computed, and what the clock sees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.limits import SchedulerLimits
from server.engine.plan import DecodeCode, StepPlan, StepResult
from server.engine.trial import Rates, TrialFailed, Workload, measure
from tests.factories import FakeClock, ScriptedBackend

LIMITS = SchedulerLimits(
    slots=4, n_ctx=256, kv_cells=1024, prefill_rows=32, prefill_rows_decoding=16, target_gap=None
)
WORK = Workload(streams=3, depth=80, steps=5, limits=LIMITS)
DOCUMENT = Workload(streams=3, depth=16, steps=0, limits=LIMITS, document=64)


class Timed(ScriptedBackend):
    """A call takes a second, and a tenth for each row."""

    def __init__(
        self, clock: FakeClock, codes: dict[int, DecodeCode] | None = None, *, split: bool = False
    ) -> None:
        super().__init__(LIMITS, codes=codes, split=split)
        self.clock = clock

    def decode(self, plan: StepPlan) -> StepResult:
        self.clock.now += 1 + 0.1 * sum(len(rows.tokens) for rows in plan.rows)
        return super().decode(plan)


def test_rates_are_tokens_over_the_seconds_of_their_own_calls() -> None:
    clock = FakeClock()
    backend = Timed(clock)
    found = measure(backend, WORK, clock)
    # Prompts: 8 rows go before the clock runs; then 32 + 32 + 8, and 32 + 32 + 16 in the second slot.
    assert found.prefill == pytest.approx((2 * 80 - 8) / (6 + 15.2))
    assert found.single == pytest.approx(5 / (5 * 1.1))
    # Five chunks of 16 beside two streams.
    assert found.beside == pytest.approx(80 / (5 * (1 + 1.8)))
    assert found.all == pytest.approx(3 * 5 / (5 * 1.3))
    assert found.slowest is None


def test_a_document_is_computed_alone_and_beside_streams_whose_longest_gap_counts() -> None:
    clock = FakeClock()
    backend = Timed(clock)
    found = measure(backend, DOCUMENT, clock)
    assert found.prefill == pytest.approx((64 - 8) / (2 + 5.6))
    assert found.beside == pytest.approx(64 / (4 * (1 + 1.8)))
    assert found.slowest == pytest.approx(1 / 2.8)
    assert (found.single, found.all) == (None, None)
    # Chunks are what the limits say: more rows beside streams are quicker, and make them wait longer.
    wider = replace(DOCUMENT, limits=replace(LIMITS, prefill_rows_decoding=64))
    found = measure(backend, wider, clock)
    assert found.beside == pytest.approx(64 / 7.6)
    assert found.slowest == pytest.approx(1 / 7.6)
    assert backend.cells == [[], [], [], []]
    assert backend.open_slots == {}


def test_where_streams_and_prompts_have_steps_in_turn_a_gap_has_one_of_each() -> None:
    clock = FakeClock()
    backend = Timed(clock, split=True)
    found = measure(backend, DOCUMENT, clock)
    # 16 rows; then streams and 16 rows in turn. The step of streams that ends the last gap is not the prompt's.
    assert found.beside == pytest.approx(64 / (4 * 2.6 + 3 * 1.2))
    assert found.slowest == pytest.approx(1 / (2.6 + 1.2))
    beside = backend.plans[-8:]
    assert [(plan.decode_rows, plan.prefill_rows) for plan in beside] == [(0, 16), (2, 0)] * 4


def test_a_target_gap_bounds_what_is_computed_beside_streams() -> None:
    clock = FakeClock()
    limits = replace(LIMITS, prefill_rows_decoding=64, target_gap=3.6)
    found = measure(Timed(clock), replace(DOCUMENT, limits=limits), clock)
    assert found.slowest == pytest.approx(1 / 3.6, rel=0.3)


def test_a_document_for_one_stream_has_nobody_beside_it() -> None:
    clock = FakeClock()
    found = measure(Timed(clock), replace(DOCUMENT, streams=1), clock)
    assert found == Rates(pytest.approx((64 - 8) / (2 + 5.6)))


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
    found = measure(Timed(clock), Workload(1, 16, 2, LIMITS), clock)
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
