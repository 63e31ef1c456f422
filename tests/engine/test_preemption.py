"""Batch work gives up its slot to better classes and goes on where it stood, over the scripted backend."""

from dataclasses import replace
from itertools import pairwise

import pytest

from server.core.events import Delta, Finished, FinishReason, Started
from server.core.request import SamplingParams
from server.engine.host_memory import HostBudget
from server.engine.plan import DecodeCode
from server.engine.preemption import LEAST_PROGRESS, MOST_PREEMPTIONS
from server.engine.waitlist import MOST_OVERTAKES
from tests.factories import (
    MODEL_INFO,
    LoopHarness,
    answer_of,
    make_limits,
    make_request,
)

INTERACTIVE, NORMAL, BATCH, AGED = (0, 0.0, 0), (1, 0.0, 0), (2, 0.0, 0), (-1, 0.0, 0)
LIMITS = make_limits(slots=2, n_ctx=512, max_rows=128)
ROOMY = 1 << 20


def harness_of(layout="unified", host=ROOMY, limits=LIMITS, **scripted):
    budget = HostBudget(host)
    made = LoopHarness(limits, host=budget, **scripted)
    if layout == "split":
        made.backend.info = replace(MODEL_INFO, shares_cells=False)
        made.loop.load()
    return made


def batch(letter, max_tokens=150, **fields):
    return make_request(letter * 120, max_tokens, **{"rank": BATCH} | fields)


def tokens(harness, request):
    events = harness.events.get(request.request_id, [])
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids]


def fill(harness, **fields):
    """Let batch work take all slots and generate."""
    requests = [batch(letter, **fields) for letter in "ab"]
    for request in requests:
        harness.submit(request)
    while min(len(tokens(harness, request)) for request in requests) < 20:
        harness.step()
    return requests


def check_ends(harness, *requests):
    for request in requests:
        assert tokens(harness, request) == answer_of(request)
        kinds = [type(event) for event in harness.events[request.request_id]]
        assert kinds.count(Started) == kinds.count(Finished) == 1
        assert (kinds[0], kinds[-1]) == (Started, Finished)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("host", [ROOMY, 0])
@pytest.mark.parametrize("layout", ["unified", "split"])
@pytest.mark.parametrize("rank", [INTERACTIVE, NORMAL])
def test_a_better_class_has_its_slot_at_once_and_batch_work_goes_on_as_if_nothing_were(
    rank, layout, host, seed
):
    harness = harness_of(layout, host)
    running = fill(harness, sampling=SamplingParams(seed=seed))
    better = [make_request(letter * 200, 40, rank=rank) for letter in "cd"]
    for request in better:
        harness.submit(request)
    harness.step()
    assert harness.scheduler.preempted == 2
    assert [one.request for one in harness.scheduler.running] == better
    harness.run()
    check_ends(harness, *running, *better)
    counters = harness.scheduler.counters
    assert (counters["preempted"], counters["resumed"]) == (2, 2)
    assert harness.backend.aside == {}
    prompts = sum(len(request.prompt) for request in (*running, *better))
    assert counters["prompt_tokens"] == prompts
    again = counters["prefill_rows"] - prompts
    if host:
        assert counters["restored"] == 2
        assert (again, counters["recomputed_rows"]) == (0, 0)
    else:
        # Of each its cells, and the row that samples its next token.
        assert again == counters["recomputed_rows"] + 2 > 2 * 140


def test_it_goes_on_with_the_very_row_that_would_have_been_next():
    harness = harness_of()
    first, _ = fill(harness)
    harness.submit(make_request("c" * 200, 5, rank=INTERACTIVE))
    harness.run()
    for plan in harness.backend.plans:
        for row in plan.rows:
            if row.start > len(first.prompt) and row.tokens[0] != ord("c"):
                assert len(row.tokens) == 1


def test_the_last_by_rank_goes_and_one_is_enough():
    harness = harness_of()
    first, second = batch("a", rank=(2, 5.0, 0)), batch("b", rank=(2, 4.0, 1))
    for request in (first, second):
        harness.submit(request)
    harness.step(20)
    harness.submit(make_request("c", 5, rank=NORMAL))
    harness.step()
    (gone,) = [one for one in harness.scheduler.waiting if one.preempted]
    assert gone.request is first
    harness.run()
    check_ends(harness, first, second)


@pytest.mark.parametrize("rank", [BATCH, AGED, (2, -1.0, 0)])
@pytest.mark.parametrize("running", [BATCH, NORMAL])
def test_only_batch_work_goes_and_only_for_better_classes(running, rank):
    harness = harness_of()
    fill(harness, rank=running)
    harness.submit(make_request("c", 5, rank=rank if running == BATCH else INTERACTIVE))
    harness.step(3)
    assert harness.scheduler.counters["preempted"] == 0


def test_it_waits_at_its_rank_before_batch_work_that_came_later():
    harness = harness_of()
    first, second = fill(harness, max_tokens=60)
    later = batch("z", rank=(2, 9.0, 9))
    harness.submit(later)
    urgent = make_request("c", 5, rank=INTERACTIVE)
    harness.submit(urgent)
    harness.step()
    order = [one.request for one in harness.scheduler.waiting]
    assert len(order) == 2
    assert order[1] is later
    harness.run()
    check_ends(harness, first, second, later, urgent)


def test_room_is_made_of_several_where_one_is_not_enough_and_of_none_where_all_are_not():
    harness = harness_of(limits=replace(LIMITS, slots=4, kv_cells=700))
    small = [batch(letter, max_tokens=80) for letter in "ab"]  # 200 cells each
    stream = make_request("s" * 100, 150, rank=NORMAL)  # 250
    for request in (*small, stream):
        harness.submit(request)
    harness.step(30)
    large = make_request("l" * 300, 160, rank=INTERACTIVE)
    harness.submit(large)
    harness.step(2)
    assert harness.scheduler.counters["preempted"] == 0, "700 - 250 are less than 460"
    smaller = make_request("l" * 300, 100, rank=(0, -1.0, 0))
    harness.submit(smaller)
    harness.step()
    assert harness.scheduler.counters["preempted"] == 2
    harness.run()
    check_ends(harness, *small, stream, large, smaller)


def test_a_sequence_is_preempted_only_so_often_and_gets_on_in_between():
    harness = harness_of(limits=replace(LIMITS, slots=1))
    one = batch("a", max_tokens=390)
    harness.submit(one)
    stood = set()
    while len(tokens(harness, one)) < 390:
        if not harness.scheduler.waiting:
            harness.submit(make_request("c", 3, rank=INTERACTIVE))
        harness.step()
        stood |= {waits.stood for waits in harness.scheduler.waiting if waits.preempted}
    check_ends(harness, one)
    assert len(stood) == harness.scheduler.counters["preempted"] == MOST_PREEMPTIONS
    for before, after in pairwise(sorted(stood)):
        assert LEAST_PROGRESS <= after - before <= LEAST_PROGRESS + 1


def test_who_is_overtaken_too_often_comes_back_and_stays():
    harness = harness_of(limits=replace(LIMITS, slots=1))
    one = batch("a", max_tokens=300)
    harness.submit(one)
    harness.step(20)
    for number in range(3 * MOST_OVERTAKES):
        harness.submit(make_request(f"c{number}", 2, rank=INTERACTIVE))
    while harness.scheduler.counters["resumed"] == 0:
        harness.step()
    assert harness.scheduler.counters["finished_length"] == MOST_OVERTAKES
    harness.run()
    check_ends(harness, one)
    assert harness.scheduler.counters["preempted"] == 1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_that_is_aborted_while_it_waits_leaves_nothing(steps):
    harness = harness_of()
    first, second = fill(harness)
    harness.submit(make_request("c" * 200, 40, rank=INTERACTIVE))
    harness.step(steps)
    (gone,) = [one.request for one in harness.scheduler.waiting if one.preempted]
    before = len(tokens(harness, gone))
    harness.loop.abort(gone.request_id)
    harness.step()
    last = harness.events[gone.request_id][-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.usage.completion_tokens) == (FinishReason.ABORTED, before)
    assert harness.scheduler.preempted == 0
    assert harness.backend.aside == {}
    harness.run()
    check_ends(harness, first if gone is second else second)


def test_its_deadline_for_a_slot_does_not_end_it():
    harness = harness_of()
    running = fill(harness, deadline=harness.clock.now + 1)
    harness.submit(make_request("c" * 200, 100, rank=INTERACTIVE))
    harness.step()
    harness.clock.now += 10
    harness.run()
    check_ends(harness, *running)


def test_a_hold_gives_no_slot_to_newcomers_but_lets_go_on_what_had_begun():
    harness = harness_of()
    running = fill(harness)
    better = make_request("c" * 20, 5, rank=INTERACTIVE)
    harness.submit(better)
    harness.step(2)
    harness.loop.hold(held=True)
    harness.submit(make_request("d" * 20, 5, rank=INTERACTIVE))
    harness.step(2)
    assert harness.scheduler.counters["preempted"] == 1
    while harness.loop.has_work:
        harness.step()
    check_ends(harness, *running, better)
    assert len(harness.scheduler.waiting) == 1


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 20])
@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_who_follows_one_that_is_preempted_computes_on(victim, steps):
    harness = harness_of(limits=replace(LIMITS, slots=3))
    start = {"leader": 5.0, "follower": -5.0}[victim]
    requests = [
        make_request("s" * 300 + "a asks", 20, rank=(2, start, 0)),
        make_request("s" * 300 + "b asks", 20, rank=(2, 0.0, 1)),
        make_request("s" * 300 + "c asks", 20, rank=(2, 1.0, 2)),
    ]
    harness.submit(requests[0])
    harness.step()
    for request in requests[1:]:
        harness.submit(request)
    harness.step(1 + steps)
    computed = harness.scheduler.pool.slots[0].sequence.computed // 8 * 8
    better = make_request("x" * 30, 200, rank=INTERACTIVE)
    harness.submit(better)
    harness.step()
    gone = [one.request for one in harness.scheduler.waiting if one.preempted]
    assert gone == [requests[0 if victim == "leader" else 2]]
    left = [one for one in harness.scheduler.running if one.request is not better]
    assert max(one.computed for one in left) >= computed
    assert any(one.leader is None for one in left)
    harness.run()
    check_ends(harness, *requests, better)


@pytest.mark.parametrize("code", [DecodeCode.NO_CELLS, DecodeCode.ABORTED, DecodeCode.FAILED])
def test_a_call_that_fails_around_a_preemption_costs_nobody_his_answer(code):
    probe = harness_of()
    fill(probe)
    calls = len(probe.backend.plans)
    for call in range(calls - 2, calls + 12, 3):
        harness = harness_of(codes={call: code})
        running = fill(harness)
        better = make_request("c" * 200, 10, rank=INTERACTIVE)
        harness.submit(better)
        harness.run()
        check_ends(harness, *running, better)


@pytest.mark.parametrize(
    ("host", "limits"), [(ROOMY, LIMITS), (0, replace(LIMITS, slots=3, kv_cells=820))]
)
def test_a_request_that_wants_nothing_cached_has_its_own_cells_back(host, limits):
    harness = harness_of(host=host, limits=limits)
    running = fill(harness, reuse_prefix=False)
    harness.submit(make_request("c" * 200, 100, rank=INTERACTIVE))
    harness.run()
    check_ends(harness, *running)
    assert harness.scheduler.counters["preempted"] == 1
    assert harness.scheduler.counters["recomputed_rows"] == 0
