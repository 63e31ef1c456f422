"""Who stands above the cells of those who left is moved down, where that pays, and answers as if alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.host_memory import HostBudget
from server.engine.interface import HostState
from server.engine.limits import SchedulerLimits
from server.engine.moving import LEAST_GAPS, LOOK
from server.engine.places import Places
from server.engine.plan import DecodeCode, Rows, Sample, StepPlan, StepResult
from tests.factories import LoopHarness, make_limits, make_request

PLENTY = 10**7
LIMITS = make_limits(
    slots=4,
    n_ctx=2048,
    max_rows=512,
    prefill_rows=512,
    prefill_rows_decoding=512,
    cold_steps=4,
    warm_cells=0,
)


def left_above(
    limits: SchedulerLimits = LIMITS, host: int = PLENTY, tokens: int = 120, **scripted: object
) -> tuple[LoopHarness, str]:
    """Three documents are computed; a short question comes, and goes on when they have ended."""
    harness = LoopHarness(limits, host=HostBudget(host), **scripted)
    for letter in "abc":
        harness.submit(make_request(letter * 1000, 20))
    harness.step(8)
    request = make_request("a question", tokens)
    harness.submit(request)
    harness.step(2)
    return harness, request.request_id


def alone(prompt: str, tokens: int) -> str:
    harness = LoopHarness(LIMITS)
    request_id = harness.submit(make_request(prompt, tokens))
    harness.run()
    return harness.text(request_id)


def test_who_is_left_above_the_free_cells_is_moved_down_and_goes_on_as_alone() -> None:
    harness, request = left_above()
    counters = harness.scheduler.counters
    assert counters["moved_cells"] == 0, "the documents are still there"
    places = harness.loop.edits.moving.places
    assert places.above > 2000
    harness.run()
    assert harness.text(request) == alone("a question", 120)
    assert 8 < counters["moved_cells"] < 130
    assert counters["move_failed"] == counters["recomputed_rows"] == 0
    places.ends()
    assert places.above < 200
    assert harness.host.used == harness.loop.memory.nbytes


def test_nothing_moves_before_the_tax_has_added_up_to_the_copy() -> None:
    """About 3,000 cells are read for nothing in each step; to copy n cells costs what reading 4 · 512 · n does."""
    steps, moved = moved_after(512)
    assert 2048 * moved <= 3100 * steps
    assert 2048 * moved >= 2900 * (steps - 40 - 2 * LOOK)
    sooner, fewer = moved_after(4)
    assert sooner + 2 * LOOK < steps
    assert fewer < moved


def moved_after(cold_steps: int, seconds: float | None = None) -> tuple[int, int]:
    """Return how many steps it takes until a slot is moved, and its cells; `seconds`: what 1,000 take both ways."""
    harness, _ = left_above(tokens=1500)
    moving, counters = harness.loop.edits.moving, harness.scheduler.counters
    moving._limits = replace(LIMITS, cold_steps=cold_steps)
    if seconds is not None:
        memory = harness.loop.memory
        memory.moving_seconds = lambda cells: cells * seconds / 1000  # type: ignore[method-assign]
    while not counters["moved_cells"] and harness.scheduler.running:
        harness.step()
    return counters["steps"], counters["moved_cells"]


@pytest.mark.parametrize("failure", ["save_fails", "restore_fails"])
def test_a_copy_that_fails_changes_no_answer(failure) -> None:
    harness, request = left_above()
    setattr(harness.backend, failure, True)
    harness.run()
    assert harness.text(request) == alone("a question", 120)
    counters = harness.scheduler.counters
    assert counters["moved_cells"] == 0
    if failure == "restore_fails":
        assert counters["move_failed"] == 1
        assert counters["recomputed_rows"] > 8, "what was lost is computed again"
    else:
        assert counters["move_failed"] == counters["recomputed_rows"] == 0
    assert harness.host.used == harness.loop.memory.nbytes


def test_a_copy_that_is_not_taken_at_once_is_offered_again() -> None:
    harness, request = left_above()
    restore = harness.backend.restore
    refused: list[int] = []

    def once(slot: int, state: HostState) -> int:
        if not refused:
            refused.append(slot)
            return 0
        return restore(slot, state)

    harness.backend.restore = once  # type: ignore[method-assign]
    harness.run()
    assert refused
    assert harness.text(request) == alone("a question", 120)
    counters = harness.scheduler.counters
    assert counters["moved_cells"] > 0
    assert counters["move_failed"] == counters["recomputed_rows"] == 0


def test_without_free_host_memory_nothing_moves_and_nothing_is_dropped_for_it() -> None:
    full = 3 * (100 + 10 * 1019)
    harness, request = left_above(host=full + 100)
    harness.run()
    counters = harness.scheduler.counters
    assert counters["parked"] == 3
    assert len(harness.loop.memory) == 3
    assert counters["moved_cells"] == 0
    assert harness.text(request) == alone("a question", 120)


def test_what_others_hold_too_stays() -> None:
    """Two questions to one agent, whose prompt stands above the documents: each would get its own copy of it."""
    harness = LoopHarness(LIMITS, host=HostBudget(PLENTY))
    for letter in "ab":
        harness.submit(make_request(letter * 1000, 6))
    harness.step(4)
    requests = [make_request("s" * 400 + f"question {number}", 120) for number in range(2)]
    for request in requests:
        harness.submit(request)
    harness.run()
    counters = harness.scheduler.counters
    assert counters["cached_tokens"] >= 400
    assert counters["moved_cells"] == 0
    for number, request in enumerate(requests):
        assert harness.text(request.request_id) == alone("s" * 400 + f"question {number}", 120)


def test_the_split_layout_and_little_to_gain_move_nothing() -> None:
    harness, _ = left_above(split=True)
    assert harness.loop.edits.moving is None
    small = replace(LIMITS, n_ctx=320, kv_cells=4 * 320)
    harness = LoopHarness(small, host=HostBudget(PLENTY))
    for letter in "abc":
        harness.submit(make_request(letter * 300, 6))
    harness.step(5)
    harness.submit(make_request("a question", 250))
    harness.run()
    assert harness.scheduler.counters["moved_cells"] == 0
    assert LEAST_GAPS > 3 * 306


def test_a_copy_that_makes_streams_wait_has_to_pay_thrice() -> None:
    quick, _ = moved_after(192, seconds=0.01)
    slow, more = moved_after(192, seconds=100.0)
    assert quick + 2 * LOOK < slow
    assert 3 * 768 * more <= 3100 * slow


class TestPlaces:
    """The lowest free cells go first; the same cells may have several holders."""

    def test_free_cells_are_given_out_from_the_lowest(self) -> None:
        places = Places(3, 32)
        places.take(0, 4)
        places.take(1, 3)
        places.take(0, 1)
        assert (places.cells(0), places.cells(1)) == ((0, 1, 2, 3, 7), (4, 5, 6))
        places.keep(0, 1)
        places.take(2, 6)
        assert places.cells(2) == (1, 2, 3, 7, 8, 9)
        assert places.used == 10
        assert places.ends() == [(10, 2), (7, 1), (1, 0)]

    def test_a_shared_cell_is_free_when_nobody_holds_it(self) -> None:
        places = Places(3, 32)
        places.take(0, 4)
        places.share(0, 1, 3)
        places.keep(0, 0)
        assert places.used == 3
        places.take(2, 2)
        assert places.cells(2) == (3, 4)
        places.keep(1, 1)
        assert (places.used, places.above) == (3, 5)

    def test_what_was_saved_in_the_order_of_its_cells_comes_back_in_that_order(self) -> None:
        places = Places(2, 32)
        places.take(0, 3)
        places.take(1, 2)
        places.keep(0, 0)
        places.take(1, 2)
        assert (places.cells(1), list(places.order(1))) == ((3, 4, 0, 1), [2, 3, 0, 1])
        order = places.order(1)
        places.keep(1, 0)
        places.take(0, 2)
        places.restore(1, order)
        assert places.cells(1) == (4, 5, 2, 3)

    def test_drafts_have_cells_until_it_is_known_what_came_true(self) -> None:
        places = Places(2, 32)
        plan = StepPlan([Rows(0, 0, [1, 2, 3, 4], 4), Rows(1, 0, [5], 1)], 2, 0, 3)
        places.computed(plan, StepResult(samples=[[Sample(2), Sample(9)], [Sample(6)]]))
        assert (places.cells(0), places.cells(1)) == ((0, 1), (4,))
        places.computed(StepPlan([Rows(1, 1, [6], 1)], 1), StepResult(samples=[[Sample(7)]]))
        assert places.cells(1) == (4, 2)

    def test_a_call_that_failed_leaves_what_it_says(self) -> None:
        places = Places(2, 32)
        places.take(0, 4)
        plan = StepPlan([Rows(0, 4, [1, 2, 3], 0), Rows(1, 0, [1, 2], 0)], 0, 5)
        places.computed(plan, StepResult(DecodeCode.NO_CELLS))
        assert places.used == 4
        places.computed(plan, StepResult(DecodeCode.ABORTED, cells={0: 6, 1: 0}))
        assert (places.used, len(places.cells(0)), places.cells(1)) == (6, 6, ())
        places.computed(plan, StepResult(DecodeCode.FAILED, cells={0: 2, 1: 1}))
        assert (places.used, len(places.cells(0)), len(places.cells(1))) == (3, 2, 1)
