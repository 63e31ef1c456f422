"""Prefixes shared between slots, computed or being computed, over the scripted backend."""

from dataclasses import replace

import pytest

from server.core.events import Delta, Finished, FinishReason, Started
from server.engine import slots
from server.engine.cells import Holdings
from server.engine.host_memory import HostBudget
from server.engine.plan import DecodeCode, Truncation
from server.engine.prefix_index import token_key
from tests.factories import MODEL_INFO, LoopHarness, make_limits, make_request

SYSTEM = "You are an agent with a prompt that takes long to compute. " * 24  # 1,416 tokens
SYSTEM = SYSTEM[:1400]
ROOMY = make_limits(slots=4, n_ctx=1600, max_rows=256, prefill_rows=256, prefill_rows_decoding=64)


def question(number, max_tokens=6, **fields):
    return make_request(f"{SYSTEM}{chr(97 + number)} asks a question", max_tokens, **fields)


def alone(request):
    harness = LoopHarness(ROOMY)
    harness.submit(request)
    harness.run()
    return harness.text(request.request_id)


def usage(harness, request):
    last = harness.events[request.request_id][-1]
    assert isinstance(last, Finished)
    return last.usage


def missed(harness):
    found = {
        name.removeprefix("prefix_missed_"): count
        for name, count in harness.scheduler.counters.items()
        if name.startswith("prefix_missed_")
    }
    found.pop("none", None)
    return found


@pytest.mark.parametrize("number", [2, 4, 12])
@pytest.mark.parametrize("apart", [0, 1, 30])
def test_one_system_prompt_is_computed_once_for_all(number, apart):
    harness = LoopHarness(ROOMY)
    requests = [question(index) for index in range(number)]
    for request in requests:
        harness.submit(request)
        harness.step(apart)
    harness.run()
    own = len(requests[0].prompt) - len(SYSTEM)
    assert harness.scheduler.counters["prefill_rows"] == len(SYSTEM) + number * own
    assert harness.scheduler.counters["cached_tokens"] == (number - 1) * len(SYSTEM)
    assert harness.scheduler.counters["copied_cells"] == 0, "an entry per cell is no copy"
    for request in requests:
        assert harness.text(request.request_id) == alone(request)
    cached = [usage(harness, request).cached_tokens for request in requests]
    assert cached == [0] + [len(SYSTEM)] * (number - 1)


def test_who_waits_is_told_what_will_be_cached_and_others_go_on():
    harness = LoopHarness(ROOMY)
    stream = harness.submit(make_request("a stream", 100))
    harness.step()
    first, second = question(1), question(2)
    harness.submit(first)
    harness.submit(second)
    harness.step()
    started = [harness.events[each.request_id][0] for each in (first, second)]
    assert started == [Started(1, 1417, 0, "none"), Started(2, 1417, 1400)]
    waiting = harness.scheduler.pool.slots[2].sequence
    while waiting.leader is not None:
        before = len(harness.events[stream])
        assert len(harness.backend.cells[2]) == 0
        harness.step()
        assert len(harness.events[stream]) == before + 1, "the stream has its token every step"
    assert len(harness.backend.cells[2]) >= 1400
    harness.run()
    assert harness.scheduler.counters["prefix_waits"] == 1
    assert [harness.text(each.request_id) for each in (first, second)] == [
        alone(first),
        alone(second),
    ]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("how", ["abort", "sampler", "follower"])
def test_one_of_those_that_wait_takes_over_from_what_is_there(how, steps):
    harness = LoopHarness(ROOMY)
    requests = [question(index) for index in range(4)]
    dies = requests[1 if how == "follower" else 0]
    if how == "sampler":
        harness.backend.fail_open.add(dies.request_id)
    for request in requests:
        harness.submit(request)
    harness.step(steps)
    if how != "sampler":
        harness.loop.abort(dies.request_id)
    harness.run()
    for request in requests:
        if request is not dies:
            assert harness.text(request.request_id) == alone(request)
    own = len(requests[0].prompt) - len(SYSTEM)
    # What was computed beyond a multiple of 8 rows is computed again.
    assert 0 <= harness.scheduler.counters["prefill_rows"] - len(SYSTEM) - 3 * own < 8


@pytest.mark.parametrize("code", [DecodeCode.NO_CELLS, DecodeCode.ABORTED, DecodeCode.FAILED])
@pytest.mark.parametrize("call", range(2, 12, 2))
def test_a_call_that_fails_while_cells_are_shared_costs_nobody_his_answer(code, call):
    harness = LoopHarness(ROOMY, codes={call: code})
    requests = [question(index) for index in range(4)]
    for request in requests:
        harness.submit(request)
    harness.run()
    for request in requests:
        assert harness.text(request.request_id) == alone(request)


def test_a_prefix_is_shared_with_one_who_goes_on_generating():
    harness = LoopHarness(ROOMY)
    first, second = question(1, 40), question(2, 40)
    harness.submit(first)
    while not any(isinstance(event, Delta) for event in harness.events.get(first.request_id, [])):
        harness.step()
    harness.submit(second)
    harness.step()
    assert harness.backend.places[0][:1400] == harness.backend.places[1][:1400]
    harness.loop.abort(first.request_id)
    third = make_request("x" * 1500, 40)
    harness.submit(third)
    harness.run()
    assert harness.text(second.request_id) == alone(second)
    assert harness.text(third.request_id) == alone(third)


def test_what_both_begin_with_is_awaited_and_not_more():
    harness = LoopHarness(ROOMY)
    long = make_request(SYSTEM + "l" * 150, 4)
    short = make_request(SYSTEM[:200] + "s" * 20, 4)
    harness.submit(long)
    harness.submit(short)
    harness.run()
    assert usage(harness, short).cached_tokens == 200
    assert [harness.text(each.request_id) for each in (long, short)] == [alone(long), alone(short)]
    copied = harness.backend.copies[0]
    assert copied == (1, 0, 1, 200), "in the step after the first chunk"


def test_cells_are_counted_once_when_idle_and_in_full_when_reserved():
    harness = LoopHarness(ROOMY)
    for number in range(4):
        harness.submit(question(number))
    harness.step()
    pool = harness.scheduler.pool
    assert pool.reserved_cells == 4 * (1417 + 6)
    harness.run()
    assert pool.reserved_cells == 0
    assert pool.idle_cells == 1400 + 4 * (17 + 5) == harness.backend.used_cells()


def test_room_is_made_of_ends_that_nobody_shares_before_shared_beginnings():
    limits = replace(ROOMY, kv_cells=3200)
    harness = LoopHarness(limits)
    for number in range(2):
        harness.submit(question(number))
    harness.run()
    before = harness.scheduler.pool.idle_cells
    assert before == 1400 + 2 * 22
    # One slot is empty and one keeps its end: 1,422 + 1,576 fit, 22 + 1,400 + 22 + 1,576 and more do not.
    other = make_request("o" * 1570, 30)
    harness.submit(other)
    harness.submit(make_request("p" * 100, 80))
    harness.run()
    again = question(7)
    harness.submit(again)
    harness.run()
    assert usage(harness, again).cached_tokens == 1400
    assert harness.text(other.request_id) == alone(other)


def test_why_a_prefix_was_missed_is_told_and_counted():
    harness = LoopHarness(make_limits(slots=2, n_ctx=64))
    long = "a beginning that is long enough to be worth something "

    def ask(prompt, **fields):
        request = make_request(prompt, 2, **fields)
        harness.submit(request)
        harness.run()
        return harness.events[request.request_id][0].missed

    assert ask(long) == "none"
    assert ask("a beg, and then other things") == "too_short"
    assert ask(long) is None
    assert ask(long, cache_scope="b", reuse_prefix=False) == "forbidden"
    ask("z" * 60), ask("y" * 60), ask("z" * 62), ask("y" * 62)
    assert ask(long) == "evicted"
    assert ask(long, cache_scope="c") == "scope"
    assert missed(harness) == {"too_short": 1, "forbidden": 1, "evicted": 1, "scope": 1}


def test_another_scope_neither_shares_nor_waits():
    harness = LoopHarness(ROOMY)
    mine, yours = question(1, cache_scope="me"), question(1, cache_scope="you")
    harness.submit(mine)
    harness.submit(yours)
    harness.run()
    assert harness.scheduler.counters["prefix_waits"] == 0
    assert [usage(harness, each).cached_tokens for each in (mine, yours)] == [0, 0]
    assert missed(harness) == {"computing_elsewhere": 1}


@pytest.mark.parametrize("apart", [0, 30])
@pytest.mark.parametrize("public", [1400, 1000])
def test_what_is_public_on_both_sides_is_computed_once_for_all_scopes(public, apart):
    harness = LoopHarness(ROOMY)
    requests = [
        question(1, cache_scope="me", public_tokens=1400),
        question(1, cache_scope="you", public_tokens=public),
        question(1, cache_scope="them"),
    ]
    for request in requests:
        harness.submit(request)
        harness.step(apart)
    harness.run()
    assert [usage(harness, each).cached_tokens for each in requests] == [0, public, 0]
    for request in requests:
        assert harness.text(request.request_id) == alone(request)


@pytest.mark.parametrize("shared", [True, False])
def test_what_can_be_neither_shared_nor_copied_each_slot_computes(monkeypatch, shared):
    harness = LoopHarness(ROOMY)
    info = replace(MODEL_INFO, shares_cells=shared, saves_cells=False)
    monkeypatch.setattr(harness.backend, "info", info)
    harness.loop.load()
    for number in range(2):
        harness.submit(question(number))
    harness.run()
    assert harness.scheduler.counters["cached_tokens"] == (1400 if shared else 0)
    assert missed(harness) == ({} if shared else {"unshareable": 1})


@pytest.mark.parametrize("number", [2, 4, 12])
@pytest.mark.parametrize("apart", [0, 1, 30])
def test_where_slots_share_no_cells_they_get_copies(number, apart):
    harness = LoopHarness(ROOMY, split=True)
    requests = [question(index) for index in range(number)]
    for request in requests:
        harness.submit(request)
        harness.step(apart)
    harness.run()
    own, counters = len(requests[0].prompt) - len(SYSTEM), harness.scheduler.counters
    assert counters["prefill_rows"] == len(SYSTEM) + number * own
    assert counters["cached_tokens"] == (number - 1) * len(SYSTEM)
    assert counters["copied_cells"] <= 3 * len(SYSTEM), (
        "later ones take an idle slot's over in place"
    )
    for request in requests:
        assert harness.text(request.request_id) == alone(request)
    held = [slot.cells for slot in harness.scheduler.pool.slots]
    assert harness.scheduler.pool.idle_cells == sum(held), "each has cells of its own"


def test_a_copy_that_fails_is_computed():
    harness = LoopHarness(ROOMY, split=True)
    harness.backend.copy_fails = True
    requests = [question(index) for index in range(4)]
    for request in requests:
        harness.submit(request)
    harness.run()
    for request in requests:
        assert harness.text(request.request_id) == alone(request)
        assert usage(harness, request).cached_tokens == 0
    assert harness.scheduler.counters["copy_failed"] >= 1


def test_a_long_slot_is_not_copied_for_a_short_beginning():
    harness = LoopHarness(ROOMY, split=True)
    harness.submit(make_request("b" * 70 + "l" * 1400, 100))
    harness.step(10)
    harness.submit(make_request("b" * 70 + "s" * 30, 4))
    harness.step()
    assert harness.backend.copies == []
    harness.run()
    assert missed(harness) == {"too_short": 1}


def test_a_conversation_goes_on_in_its_own_slot_and_another_leaves_it_whole():
    harness = LoopHarness(ROOMY, split=True)
    first = make_request(SYSTEM[:700] + "x" * 200, 4)
    harness.submit(first)
    harness.run()
    turn = make_request([*first.prompt, *harness.text(first.request_id).encode(), *b"go on"], 4)
    harness.submit(turn)
    harness.run()
    assert harness.backend.copies == []
    assert [slot.cells > 0 for slot in harness.scheduler.pool.slots] == [True, False, False, False]
    other = make_request(SYSTEM[:700] + "y" * 20, 4)
    harness.submit(other)
    harness.run()
    assert [copy[1:] for copy in harness.backend.copies] == [(0, 1, 696)]
    assert harness.scheduler.pool.slots[0].cells > 900
    for request in (first, turn, other):
        assert harness.text(request.request_id) == alone(request)


def test_a_follower_that_is_aborted_frees_its_slot_and_has_used_nothing():
    harness = LoopHarness(ROOMY)
    first, second = question(1), question(2)
    harness.submit(first)
    harness.submit(second)
    harness.step(2)
    harness.loop.abort(second.request_id)
    harness.step()
    last = harness.events[second.request_id][-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.usage.cached_tokens) == (FinishReason.ABORTED, 0)
    assert harness.scheduler.pool.slots[1].cells == 0
    harness.run()
    assert harness.text(first.request_id) == alone(first)


def test_a_long_prefix_is_not_given_up_for_a_short_one():
    harness = LoopHarness(make_limits(slots=2, n_ctx=128))
    for prompt in ("l" * 100, "s" * 20):
        harness.submit(make_request(prompt, 2))
        harness.run()
    harness.submit(make_request("another", 2))
    harness.run()
    assert harness.scheduler.pool.slots[0].cells == 101
    assert Truncation(0, 0) not in harness.scheduler._edits


def test_a_cell_that_is_shared_and_computed_again_is_another_cell():
    harness = LoopHarness(make_limits(slots=3, n_ctx=128), codes={2: DecodeCode.ABORTED})
    first, second = make_request("p" * 64, 20), make_request("p" * 64 + "and more", 20)
    harness.submit(first)
    harness.step(2)
    harness.submit(second)
    harness.step()  # shares all 64, and fails
    assert harness.backend.copies == [(2, 0, 1, 64)]
    harness.run()  # the harness compares books and cells after every step
    assert harness.backend.places[1][:63] == harness.backend.places[0][:63]
    assert harness.backend.places[1][63] != harness.backend.places[0][63]
    assert harness.scheduler.counters["decode_aborted"] == 1
    for request in (first, second):
        assert harness.text(request.request_id) == alone(request)


def test_a_conversation_of_many_turns_stays_cheap_to_count():
    """Each turn is copied from slot to slot; books that grow with every turn would slow each admission."""
    harness = LoopHarness(ROOMY)
    said = "A conversation"
    for turn in range(40):
        asked = f"{said} and then its turn {turn}"
        requests = [make_request(asked, 4) for _ in range(1 + turn % 2)]
        for request in requests:
            harness.submit(request)
        harness.run()
        assert harness.text(requests[-1].request_id) == alone(requests[-1])
        said = asked + harness.text(requests[0].request_id)
    assert (
        harness.scheduler.counters["cached_tokens"]
        > 0.9 * harness.scheduler.counters["prompt_tokens"]
    )
    assert max(len(slot.runs) for slot in harness.scheduler.pool.slots) <= 8


def test_room_is_made_at_once_of_what_many_idle_slots_share_and_nobody_needs(monkeypatch):
    counted = []

    class Counted(Holdings):
        def __init__(self, held):
            counted.append(1)
            super().__init__(held)

    harness = LoopHarness(make_limits(slots=16, n_ctx=1600, kv_cells=2400, max_rows=256))
    for number in range(3):
        harness.submit(make_request("n" * 200 + str(number), 2))
        harness.run()
    for number in range(11):
        harness.submit(make_request("f" * 400 + str(number), 2))
        harness.run()
    stream = make_request("n" * 200 + "3", 300)
    harness.submit(stream)
    harness.step(4)
    pool = harness.scheduler.pool
    needed = [slot for slot in pool.slots if slot.key.startswith(token_key([ord("n")] * 200))]
    assert len(needed) == 4
    other = make_request("o" * 1390, 200)
    harness.submit(other)
    monkeypatch.setattr(slots, "Holdings", Counted)
    harness.step()
    # To empty these would free nothing while the stream runs, for it has them, too.
    assert [slot.cells for slot in needed if slot.sequence is None] == [192] * 3
    assert len(counted) <= 5
    assert pool.idle_cells > 300, "no more is cut than has to be"
    harness.run()
    for request in (stream, other):
        assert len(harness.text(request.request_id)) == request.max_tokens


@pytest.mark.parametrize("align", [1, 8])
def test_a_turn_computes_its_new_tokens_and_the_last_one_that_was_said(align):
    """Eight conversations of four turns over four slots, asked in turn: what waits goes to host memory."""
    harness = LoopHarness(replace(ROOMY, reuse_align=align), host=HostBudget(10**7))
    counters, own = harness.scheduler.counters, 47
    said = [chr(97 + number) * 100 for number in range(8)]
    computed = []
    for turn in range(4):
        before = counters["prefill_rows"]
        for number, history in enumerate(said):
            request = make_request(history + f"{number} asks in turn {turn} ".ljust(own, "."), 40)
            harness.submit(request)
            harness.run()
            said[number] = bytes(request.prompt).decode() + harness.text(request.request_id)
            assert harness.text(request.request_id) == alone(request)
        computed.append(counters["prefill_rows"] - before)
    if align == 1:
        assert computed == [8 * (100 + own), *[8 * (own + 1)] * 3]
    else:
        assert computed[0] == 8 * (100 + own)
        assert all(8 * own < rows <= 8 * (own + 8) for rows in computed[1:])
    assert counters["restored"] == 8 * 3


def test_who_waited_for_another_scopes_public_cells_has_them_for_its_own_scope():
    harness = LoopHarness(ROOMY)
    for scope in ("a", "b"):
        harness.submit(replace(question(1, cache_scope=scope), public_tokens=len(SYSTEM)))
    harness.run()
    later = question(2, cache_scope="b")
    harness.submit(later)
    harness.run()
    assert usage(harness, later).cached_tokens == len(SYSTEM)
    assert harness.text(later.request_id) == alone(later)
