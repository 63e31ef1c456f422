"""Which prompt rows stand beside which streams: plans of a scripted backend whose calls take time."""

from __future__ import annotations

import pytest

from server.engine.pace import Work
from server.engine.plan import CallShape, StepPlan
from server.engine.prefill import LONGER, MOST_PASSED, PREFILL_SHARE, UNMEASURED_ROWS
from server.engine.prefix_index import MIN_PREFILL_ROWS
from tests.engine.machines import CPU, GPU, TILED, machine, timed
from tests.factories import LoopHarness, make_limits, make_request

TARGET = 0.25
LIMITS = {
    "slots": 4,
    "n_ctx": 4096,
    "max_rows": 512,
    "prefill_rows": 512,
    "prefill_rows_decoding": 512,
    "target_gap": TARGET,
}


def prompt(length: int, letter: str) -> str:
    return letter * length


def decodes(plan: StepPlan) -> dict[int, int]:
    """Slot → rows of sequences that stream."""
    return {row.slot: 1 for row in plan.rows if len(row.tokens) == 1 and row.outputs}


def rows_of(plan: StepPlan, slot: int) -> int:
    return sum(len(row.tokens) for row in plan.rows if row.slot == slot)


def running(harness: LoopHarness, request_id: str):
    return next(s for s in harness.scheduler.running if s.request.request_id == request_id)


def tell(harness: LoopHarness, request_id: str) -> None:
    """Step until a request's prompt is computed."""
    for _ in range(2000):
        if len(harness.events.get(request_id, ())) > 1:
            return
        harness.step()
    raise AssertionError("it does not begin")


def streaming(harness: LoopHarness, count: int, tokens: int = 1000) -> list[str]:
    """Let `count` streams run; what they need is learned."""
    ids = [harness.submit(make_request(prompt(40, chr(97 + i)), tokens)) for i in range(count)]
    for one in ids:
        tell(harness, one)
    harness.step(5)
    return ids


def taught(truth=CPU, streams: int = 3, **fields) -> tuple[LoopHarness, list]:
    """A harness that knows its machine, and `streams` that run on it."""
    harness = LoopHarness(make_limits(**(LIMITS | fields)), calls=CallShape(truth.tile, truth.tile))
    calls = timed(harness, machine(truth))
    harness.submit(make_request(prompt(900, "z"), 4))
    harness.run()
    streaming(harness, streams)
    tell(harness, harness.submit(make_request(prompt(700, "y"), 1)))
    calls.clear()
    return harness, calls


@pytest.mark.parametrize("truth", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_a_step_beside_streams_is_expected_to_fit_its_time(truth, streams):
    harness, calls = taught(truth, streams)
    document = harness.submit(make_request(prompt(3000, "d"), 2))
    tell(harness, document)
    ending = LONGER * TARGET
    for plan, expected in calls:
        assert plan.decode_rows == streams
        assert expected is not None
        last = any(row.outputs and len(row.tokens) > 1 for row in plan.rows)
        assert expected <= (ending if last else TARGET) or plan.prefill_rows <= MIN_PREFILL_ROWS


def test_the_chunk_shrinks_as_more_streams_run_and_contexts_grow():
    chunks = []
    for streams in (1, 3, 12):
        harness, calls = taught(CPU, streams, slots=16, kv_cells=65536)
        harness.submit(make_request(prompt(3000, "d"), 2))
        harness.step(12)
        chunks.append([plan.prefill_rows for plan, _ in calls])
    first = [one[0] for one in chunks]
    assert first == sorted(first, reverse=True)
    assert first[0] > first[-1]
    assert all(one[-1] < one[0] for one in chunks)


@pytest.mark.parametrize("target", [0.05, 0.25, 0.7, 2.0])
def test_where_attention_is_computed_in_tiles_a_step_fills_them(target):
    harness, calls = taught(TILED, 3, target_gap=target, reuse_align=1)
    document = harness.submit(make_request(prompt(3000, "d"), 2))
    tell(harness, document)
    prefill = [plan for plan, _ in calls if plan.prefill_rows]
    *chunks, _last = [plan.prefill_rows + plan.decode_rows for plan in prefill]
    assert chunks
    assert all(rows % TILED.tile == 0 for rows in chunks)
    assert max(chunks) > TILED.tile if target == 2.0 else set(chunks[8:]) == {TILED.tile}


def test_a_short_prompt_that_leaves_a_tile_unfilled_takes_a_long_one_along():
    harness, calls = taught(TILED, 2, target_gap=0.05, reuse_align=1)
    harness.submit(make_request(prompt(3000, "d"), 2))
    harness.step()
    short = harness.submit(make_request(prompt(30, "s"), 2))
    calls.clear()
    tell(harness, short)
    assert [plan.prefill_rows + plan.decode_rows for plan, _ in calls] == [TILED.tile]


def test_nobody_streams_and_prefill_has_the_whole_step():
    harness = LoopHarness(make_limits(**LIMITS))
    calls = timed(harness, machine(CPU))
    harness.submit(make_request(prompt(1500, "d"), 2))
    harness.step(3)
    assert [plan.prefill_rows for plan, _ in calls] == [512, 512, 476]


def test_where_rows_cost_next_to_nothing_they_stand_beside_streams_all_at_once():
    harness, calls = taught(GPU, 3)
    harness.submit(make_request(prompt(1500, "d"), 2))
    harness.step(3)
    assert [plan.prefill_rows for plan, _ in calls] == [504, 504, 492]


def test_throughput_first_takes_what_fits_the_call():
    harness, calls = taught(CPU, 3, target_gap=None)
    harness.submit(make_request(prompt(1500, "d"), 2))
    harness.step(3)
    assert [plan.prefill_rows for plan, _ in calls] == [504, 504, 492]


def test_before_anything_was_measured_streams_are_kept_from_the_worst():
    harness = LoopHarness(make_limits(**LIMITS))  # its calls take no time, so none is measured
    streaming(harness, 1)
    harness.backend.plans.clear()
    harness.submit(make_request(prompt(1500, "d"), 2))
    harness.step(2)
    assert [plan.prefill_rows for plan in harness.backend.plans] == [UNMEASURED_ROWS] * 2


def test_the_explicit_cap_holds_whatever_would_fit():
    harness, calls = taught(GPU, 3, prefill_rows_decoding=64)
    harness.submit(make_request(prompt(300, "d"), 2))
    harness.step(3)
    assert [plan.prefill_rows for plan, _ in calls] == [64, 64, 64]


def test_prefill_goes_on_where_streams_alone_take_too_long():
    harness, calls = taught(CPU, 3, target_gap=0.01)
    document = harness.submit(make_request(prompt(600, "d"), 2))
    tell(harness, document)
    for plan, expected in calls[:-1]:
        assert plan.prefill_rows >= MIN_PREFILL_ROWS
        decode = Work.of(row for row in plan.rows if len(row.tokens) == 1)
        share = (expected or 0.0) - machine(CPU)(decode)
        assert share > PREFILL_SHARE / 2 * machine(CPU)(decode)


def test_the_last_rows_of_a_prompt_cost_no_step_of_their_own():
    harness, calls = taught(CPU, 3)
    harness.submit(make_request(prompt(3000, "d"), 2))
    harness.step()
    chunk = calls[0][0].prefill_rows
    for more in (8, 16):
        other, seen = taught(CPU, 3)
        other.submit(make_request(prompt(chunk + more, "d"), 2))
        other.step()
        assert seen[0][0].prefill_rows == chunk + more
    other, seen = taught(CPU, 3)
    other.submit(make_request(prompt(2 * chunk, "d"), 2))
    other.step()
    assert seen[0][0].prefill_rows < 2 * chunk


def test_a_short_prompt_passes_a_long_one():
    harness, calls = taught(CPU, 2)
    document = harness.submit(make_request(prompt(3000, "d"), 2))
    harness.step(2)
    short = harness.submit(make_request(prompt(58, "s"), 4))
    calls.clear()
    tell(harness, short)
    assert len(calls) == 1
    assert running(harness, document).computed < 600


def test_short_prompts_share_a_step_before_anybody_streams():
    harness = LoopHarness(make_limits(**LIMITS))
    calls = timed(harness, machine(CPU))
    for letter in "abcd":
        harness.submit(make_request(prompt(58, letter), 4))
    harness.step()
    assert [plan.prefill_rows for plan, _ in calls] == [4 * 58]


def test_a_stream_that_begins_with_a_step_waits_for_no_document():
    harness = LoopHarness(make_limits(**LIMITS))
    calls = timed(harness, machine(CPU))
    harness.submit(make_request(prompt(900, "z"), 2))
    harness.run()
    calls.clear()
    harness.submit(make_request(prompt(3000, "d"), 2))
    short = harness.submit(make_request(prompt(58, "s"), 4))
    harness.step()
    assert len(harness.events[short]) == 2
    assert calls[0][1] is not None
    assert calls[0][1] <= TARGET


@pytest.mark.parametrize("cap", [MIN_PREFILL_ROWS, 64, 512])
def test_a_long_prompt_ends_however_many_short_ones_come(cap):
    harness, calls = taught(CPU, 1, prefill_rows_decoding=cap, slots=12, kv_cells=12 * 4096)
    document = harness.submit(make_request(prompt(2000, "d"), 2))
    harness.step()
    slot = running(harness, document).slot
    calls.clear()
    for number in range(2000):
        if len(harness.events.get(document, ())) > 1:
            break
        # More than a step takes: there is always one that is shorter.
        for part in range(8):
            harness.submit(make_request(f"{number:04d}{part}" * 12, 1))
        harness.step()
    got = [rows_of(plan, slot) for plan, _ in calls]
    passed = longest = 0
    for rows in got:
        passed = 0 if rows else passed + 1
        longest = max(longest, passed)
    assert 0 < longest <= MOST_PASSED
    assert len(calls) <= (MOST_PASSED + 1) * -(-2000 // MIN_PREFILL_ROWS)


def test_a_prompt_that_others_wait_for_counts_for_all_of_them():
    harness, calls = taught(CPU, 0, target_gap=0.1, slots=8, kv_cells=8 * 4096)
    streaming(harness, 1)
    alone = harness.submit(make_request(prompt(900, "b"), 2))
    harness.step()
    shared = prompt(1000, "a")
    asked = [harness.submit(make_request(shared + f"{i} question", 2)) for i in range(4)]
    calls.clear()
    harness.step(3)
    leader, other = running(harness, asked[0]), running(harness, alone)
    assert all(rows_of(plan, leader.slot) for plan, _ in calls)
    assert not any(rows_of(plan, other.slot) for plan, _ in calls[:MOST_PASSED])


def test_steps_with_prompt_rows_are_counted():
    harness, calls = taught(CPU, 2)
    before = harness.scheduler.counters.copy()
    harness.submit(make_request(prompt(500, "d"), 2))
    harness.step(20)
    found = harness.scheduler.counters - before
    rows = [plan.prefill_rows for plan, _ in calls if plan.prefill_rows]
    assert found["prefill_rows"] == found["prefill_rows_decoding"] == sum(rows) == 500
    assert found["prefill_steps"] == found["prefill_steps_decoding"] == len(rows)
    assert (found["steps"], found["decode_rows"]) == (20, 2 * 20 + 1), "no pass of their own"


def tiled(plan: StepPlan) -> float:
    """Two CPU cores: every row of a tile attends all that one of them does."""
    work = Work.of(plan.rows)
    if work.rows < TILED.tile:
        return machine(TILED)(work)
    tiles = -(-work.rows // TILED.tile)
    return machine(TILED)(work._replace(attended=0)) + 2.7e-6 * tiles * TILED.tile * work.span


def beside_a_document(context: int) -> tuple[LoopHarness, list[StepPlan]]:
    """Two streams with so long contexts, and the steps that compute a document beside them."""
    limits = make_limits(**(LIMITS | {"reuse_align": 1}))
    harness = LoopHarness(limits, calls=CallShape(TILED.tile, TILED.tile), cost=tiled)
    harness.submit(make_request(prompt(1500, "z"), 2))
    harness.run()
    for letter in "ab":
        tell(harness, harness.submit(make_request(prompt(context, letter), 1000)))
    harness.step(5)
    harness.backend.plans.clear()
    tell(harness, harness.submit(make_request(prompt(2000, "d"), 2)))
    return harness, harness.backend.plans


def test_deep_streams_and_a_document_have_steps_in_turn():
    """A tile of both would attend the streams' contexts for each of the document's rows."""
    _, plans = beside_a_document(1500)
    kinds = [(plan.decode_rows, plan.prefill_rows > 0) for plan in plans]
    kinds = kinds[kinds.index((0, True)) :]
    assert len(kinds) > 20
    assert kinds == ([(0, True), (2, False)] * len(kinds))[: len(kinds)]
    assert all(plan.prefill_rows % TILED.tile == 0 for plan in plans[:-2])


def test_shallow_streams_go_along_with_a_document():
    _, plans = beside_a_document(16)
    assert all(plan.decode_rows == 2 for plan in plans[:4])
    assert all(plan.prefill_rows for plan in plans[:4])


@pytest.mark.parametrize("context", [50, 1500])
def test_streams_and_prompts_have_steps_in_turn_where_a_call_takes_several_passes(context):
    """The split layout: llama.cpp computes a row of each slot first, then what is left of every prompt."""
    limits = make_limits(**(LIMITS | {"reuse_align": 1}))
    calls = CallShape(chunk_rows=64, one_pass=False)
    harness = LoopHarness(limits, split=True, calls=calls)
    timed(harness, machine(CPU))
    for letter in "ab":
        tell(harness, harness.submit(make_request(prompt(context, letter), 1000)))
    harness.step(5)
    harness.backend.plans.clear()
    tell(harness, harness.submit(make_request(prompt(700, "d"), 2)))
    kinds = [(plan.decode_rows, plan.prefill_rows > 0) for plan in harness.backend.plans]
    kinds = kinds[kinds.index((0, True)) :]
    assert len(kinds) >= 8
    assert kinds == ([(0, True), (2, False)] * len(kinds))[: len(kinds)]
    chunks = [plan.prefill_rows for plan in harness.backend.plans if plan.prefill_rows]
    assert min(chunks[:-1]) >= 64
