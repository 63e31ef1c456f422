"""A draft model changes when tokens come, never which; and it is asked where that pays."""

import random
import zlib
from itertools import pairwise

import pytest

from server.core.events import FinishReason
from server.engine.drafting import CallTimes
from server.engine.guess import Guess
from server.engine.interface import DraftInfo
from server.engine.plan import DecodeCode
from tests.engine.test_speculation import VERSE, answers, cheap, costly, events, make_harness
from tests.factories import (
    EOG,
    N_VOCAB,
    answer_of,
    hashed_successor,
    make_request,
    mostly_a,
    recite,
)

SMALL_ROWS = 64
"""Of a call of the draft model, in these tests."""


def tokens_of(rows):
    return sum(len(row.tokens) for row in rows)


def light(rows):
    """A draft model that takes a twentieth of the main one."""
    return 0.0005 + 0.000005 * tokens_of(rows)


def heavy(rows):
    """One that takes as long as the main one."""
    return 0.010 + 0.0001 * tokens_of(rows)


def wrong(tokens):
    return 32 + (hashed_successor(tokens) - 31) % 95


def often_right(share):
    def foresees(tokens):
        right = zlib.crc32(repr(tokens[-9:]).encode()) % 1000 < 1000 * share
        return hashed_successor(tokens) if right else wrong(tokens)

    return foresees


def drafting(foresees=hashed_successor, cost=cheap, **fields):
    return make_harness(cost, foresees=foresees, **({"draft_cost": light} | fields))


def of(harness):
    return harness.scheduler.speculation.guessing.drafting


def some_requests(count=4, length=150, **fields):
    return [
        make_request(f"request {number} " * (number + 1), length, **fields)
        for number in range(count)
    ]


def test_text_that_never_repeats_comes_in_fewer_steps_and_is_the_same():
    harness = drafting()
    request = make_request("what is said here ", 300)
    assert answers(harness, [request]) == [answer_of(request)]
    counters = harness.scheduler.counters
    assert counters["drafted_by_model"] == counters["drafted"]
    assert counters["accepted_by_model"] == counters["accepted"]
    assert counters["accepted"] >= 0.9 * counters["drafted"] > 200
    assert counters["steps"] == 1 + 299 - counters["accepted"] < 60
    assert counters["draft_calls"] == len(harness.backend.draft_calls)
    assert counters["draft_rows"] == sum(map(tokens_of, harness.backend.draft_calls))
    assert counters["generated_tokens"] == 300


def test_without_a_draft_model_nothing_is_foreseen():
    harness = make_harness()
    request = make_request("what is said here ", 300)
    assert answers(harness, [request]) == [answer_of(request)]
    assert harness.scheduler.speculation.guessing is None
    assert not harness.backend.draft_calls


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("cost", [cheap, costly])
def test_answers_are_what_they_would_be_however_much_comes_true(share, cost):
    requests = some_requests(7)
    harness = drafting(often_right(share), cost)
    assert answers(harness, requests) == [answer_of(request) for request in requests]
    assert harness.scheduler.counters["draft_calls"] > 0


def test_the_main_models_times_are_learned_without_the_draft_models():
    slow = drafting(draft_cost=lambda rows: 0.004 + light(rows))
    answers(slow, [make_request("what is said here ", 300)])
    assert slow.scheduler.counters["accepted"] > 100
    assert slow.scheduler.pace.step_seconds(1, 0) == pytest.approx(0.0101, rel=0.05)
    assert of(slow).times.seconds(1) == pytest.approx(0.0045, rel=0.05)


def took(harness, requests):
    before = harness.clock.now
    answers(harness, requests)
    return harness.clock.now - before - 0.01 * len(harness.backend.plans)


@pytest.mark.parametrize("cost", [cheap, costly])
@pytest.mark.parametrize("streams", [1, 4])
def test_a_draft_model_that_is_always_wrong_costs_little(cost, streams):
    time = {}
    for draft_rows in (0, 32):
        harness = drafting(wrong, cost, draft_rows=draft_rows)
        time[draft_rows] = took(harness, some_requests(streams, 400))
        counters = harness.scheduler.counters
        assert counters["accepted"] == 0
        assert (counters["drafted"] > 0) == (draft_rows > 0)
    assert time[32] <= 1.05 * time[0]


def test_after_trials_that_lose_time_pauses_get_longer_and_longer():
    harness = drafting(wrong, costly)
    answers(harness, [make_request("nothing of this comes true ", 900)])
    steps = [number for number, plan in enumerate(harness.backend.plans) if plan.draft_rows]
    pauses = [after - before for before, after in pairwise(steps) if after > before + 1]
    assert len(pauses) >= 4
    assert all(after > 1.5 * before for before, after in pairwise(pauses))


def test_a_draft_model_that_was_wrong_for_others_is_not_tried_at_once():
    harness = drafting(wrong, costly)
    for request in some_requests(4, 100):
        answers(harness, [request])
    drafted = harness.scheduler.counters["drafted"]
    answers(harness, [make_request("one more", 25)])
    assert harness.scheduler.counters["drafted"] == drafted


def test_one_that_proved_itself_is_asked_from_the_first_token_on():
    harness = drafting()
    answers(harness, some_requests(1, 100))
    before = len(harness.backend.plans)
    answers(harness, [make_request("one more", 25)])
    assert harness.backend.plans[before + 1].draft_rows > 0


def test_one_that_takes_as_long_as_the_main_model_is_left_alone():
    harness = drafting(draft_cost=heavy)
    answers(harness, some_requests(1, 300))
    assert harness.scheduler.counters["drafted"] < 30


def test_it_turns_itself_off_as_the_batch_fills():
    """Rows of many streams use up what a card computes beside the weights."""

    def full(plan):
        rows = plan.decode_rows + plan.prefill_rows + plan.draft_rows
        return 0.010 + 0.004 * max(0, rows - 4)

    sizes = {"slots": 16, "max_rows": 256}
    alone = drafting(cost=full, **sizes)
    answers(alone, some_requests(1, 200))
    assert alone.scheduler.counters["accepted"] > 100
    together = drafting(cost=full, **sizes)
    answers(together, some_requests(16, 100))
    assert together.scheduler.counters["drafted"] < 0.1 * 1600


def test_what_repeats_is_looked_up_and_not_asked_for():
    script = VERSE * 8
    harness = drafting(recite(script), successor=recite(script))
    request = make_request(script[:80], 400)
    assert answers(harness, [request]) == [script[80:480]]
    counters = harness.scheduler.counters
    assert counters["drafted"] > 250
    assert counters["drafted_by_model"] == counters["draft_calls"] == 0


def test_one_that_is_too_slow_keeps_no_lookup_from_its_rows():
    drafted = {}
    for foresees in (None, mostly_a):
        harness = make_harness(successor=mostly_a, foresees=foresees, draft_cost=lambda _rows: 0.2)
        answers(harness, some_requests(2, 400))
        counters = harness.scheduler.counters
        drafted[foresees] = counters["drafted"] - counters["drafted_by_model"]
    assert drafted[mostly_a] > 0.9 * drafted[None] > 100


def test_a_long_prompt_is_shown_piece_by_piece_and_never_more_than_a_call_takes():
    harness = drafting(n_ctx=2048, draft=DraftInfo(N_VOCAB, 100))
    request = make_request([random.Random(1).randrange(256) for _ in range(1200)], 400)
    assert answers(harness, [request]) == [answer_of(request)]
    sizes = [tokens_of(rows) for rows in harness.backend.draft_calls]
    assert max(sizes) <= 100
    assert sum(size > 50 for size in sizes) >= 1200 // 100
    assert harness.scheduler.counters["accepted"] > 100
    before = [rows for rows in harness.backend.draft_calls if rows[0].start < 1100]
    assert not any(row.outputs for rows in before for row in rows)


def test_showing_takes_no_longer_than_a_part_of_the_gap():
    harness = drafting(
        n_ctx=2048, draft=DraftInfo(N_VOCAB, 512), draft_cost=lambda rows: 2e-4 * tokens_of(rows)
    )
    answers(harness, some_requests(1, 100))
    harness.backend.draft_calls.clear()
    answers(harness, [make_request([random.Random(1).randrange(256) for _ in range(900)], 900)])
    sizes = [tokens_of(rows) for rows in harness.backend.draft_calls]
    assert max(sizes) == 256  # a quarter of 0.3 s are 375 rows


def test_a_prompt_that_takes_longer_to_show_than_was_gained_so_far_waits():
    """An unproven draft model may cost a 32nd of what the answer took."""
    harness = drafting(
        wrong,
        n_ctx=2048,
        draft=DraftInfo(N_VOCAB, 512),
        draft_cost=lambda rows: 0.001 * tokens_of(rows),
    )
    request = make_request([random.Random(1).randrange(256) for _ in range(1500)], 200)
    answers(harness, [request])
    assert sum(map(tokens_of, harness.backend.draft_calls)) <= 64


def test_nothing_is_foreseen_while_a_prompt_is_computed():
    harness = drafting(prefill_rows_decoding=16)
    harness.submit(make_request("what is said here ", 300))
    harness.step(12)
    assert harness.backend.plans[-1].draft_rows
    calls = len(harness.backend.draft_calls)
    harness.submit(make_request("another one, whose prompt takes some steps " * 3, 5))
    harness.step(4)
    assert [plan.draft_rows for plan in harness.backend.plans[-4:]] == [0] * 4
    assert len(harness.backend.draft_calls) == calls


@pytest.mark.parametrize("max_tokens", range(1, 40))
def test_the_limit_ends_a_draft_exactly(max_tokens):
    harness = drafting(n_ctx=64, slots=2)
    answers(harness, [make_request("abc", 40)])
    request = make_request([*b"what is said here"][: 64 - max_tokens], max_tokens)
    assert answers(harness, [request]) == [answer_of(request)]
    assert events(harness, request).reason is FinishReason.LENGTH


@pytest.mark.parametrize("ignore_eos", [True, False])
@pytest.mark.parametrize("end", range(30, 60, 3))
def test_an_end_is_not_drafted_and_ends_the_answer(end, ignore_eos):
    def successor(tokens):
        return EOG if len(tokens) == end else hashed_successor(tokens)

    harness = drafting(successor, successor=successor)
    request = make_request("what is said", 80, ignore_eos=ignore_eos)
    said = answer_of(request, successor)
    if not ignore_eos:
        said = said[: said.index(EOG)]
    assert answers(harness, [request]) == [said]
    drafts = [row.tokens[1:] for plan in harness.backend.plans for row in plan.rows]
    assert harness.scheduler.counters["drafted"] > 0
    assert not any(EOG in draft for draft in drafts)


@pytest.mark.parametrize("position", range(20, 60, 7))
def test_a_stop_string_within_a_draft_ends_the_answer(position):
    plain = make_request("what is said here ", 200)
    stop = bytes(answer_of(plain)[position : position + 3]).decode()
    request = make_request("what is said here ", 200, stop=(stop,))
    alone = make_harness(draft_rows=0)
    assert answers(drafting(), [request]) == answers(alone, [request])


@pytest.mark.parametrize("steps", range(4, 15))
def test_an_abort_between_drafts_spares_neighbour_and_heir(steps):
    harness = drafting(slots=2)
    victim, neighbour, heir = some_requests(3)
    for request in (victim, neighbour, heir):
        harness.submit(request)
    harness.step(steps)
    harness.loop.abort(victim.request_id)
    harness.run()
    assert harness.tokens(neighbour.request_id) == answer_of(neighbour)
    assert harness.tokens(heir.request_id) == answer_of(heir)
    assert events(harness, victim).reason is FinishReason.ABORTED


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, True), ({"cache_scope": "other"}, False), ({"reuse_prefix": False}, False)],
)
def test_what_a_slot_was_shown_serves_those_who_might_share_cells(changes, kept):
    harness = drafting(slots=1)
    first = make_request("a question that begins like the next one", 60)
    answers(harness, [first])
    said = harness.tokens(first.request_id)
    calls = len(harness.backend.draft_calls)
    second = make_request([*first.prompt, *said, 1, 2, 3], 60, **changes)
    assert answers(harness, [second]) == [answer_of(second)]
    begin = harness.backend.draft_calls[calls][0].start
    assert begin > 80 if kept else begin == 0


def test_the_same_again_is_foreseen_although_its_slot_holds_all_of_it():
    harness = drafting(slots=1)
    request = make_request("what is said here ", 100)
    answers(harness, [request])
    accepted = harness.scheduler.counters["accepted"]
    again = make_request("what is said here ", 100)
    assert answers(harness, [again]) == [answer_of(again)]
    assert harness.scheduler.counters["accepted"] >= 2 * accepted > 100


@pytest.mark.parametrize(
    "code", [DecodeCode.NO_CELLS, DecodeCode.ABORTED, DecodeCode.INVALID, DecodeCode.FAILED]
)
@pytest.mark.parametrize("call", [0, 1, 3, 10])
def test_a_call_of_the_draft_model_that_fails_costs_drafts_and_no_request(code, call):
    requests = some_requests(3)
    harness = drafting(draft_codes={call: code})
    assert answers(harness, requests) == [answer_of(request) for request in requests]
    counters = harness.scheduler.counters
    assert counters["draft_failed"] == 1
    assert counters["failed"] == 0
    assert counters["accepted"] > 100


def test_what_it_raises_costs_drafts_and_no_request():
    harness = drafting()
    foresee, calls = harness.backend.foresee, []

    def raising(rows):
        calls.append(rows)
        if len(calls) == 5:
            harness.backend.draft_cells[rows[0].slot].clear()
            raise MemoryError("no room")
        return foresee(rows)

    harness.backend.foresee = raising
    request = make_request("what is said here ", 300)
    assert answers(harness, [request]) == [answer_of(request)]
    assert harness.scheduler.counters["draft_failed"] == 1
    assert len(calls) > 100


def test_after_three_failures_in_a_row_it_is_given_up(caplog):
    fails = dict.fromkeys((*range(2, 4), *range(5, 8)), DecodeCode.FAILED)
    harness = drafting(draft_codes=fails)
    requests = some_requests(4)
    assert answers(harness, requests) == [answer_of(request) for request in requests]
    assert harness.scheduler.counters["draft_failed"] == 5
    assert len(harness.backend.draft_calls) == 8
    told = [one.message for one in caplog.records if "no more drafts" in one.message]
    assert told == ["The draft model failed 3 times in a row: no more drafts"]


@pytest.mark.parametrize(
    "code", [DecodeCode.NO_CELLS, DecodeCode.ABORTED, DecodeCode.FAILED, DecodeCode.INVALID]
)
@pytest.mark.parametrize("nth", [0, 1, 3])
def test_a_call_of_the_main_model_with_such_drafts_that_fails_loses_nothing(code, nth):
    requests = some_requests(2)
    rehearsal = drafting()
    answers(rehearsal, requests)
    calls = [number for number, plan in enumerate(rehearsal.backend.plans) if plan.draft_rows]
    harness = drafting(codes={calls[nth]: code})
    for request in requests:
        harness.submit(request)
    harness.run()
    if code is DecodeCode.INVALID:
        assert harness.scheduler.counters["failed"] == 2
        return
    for request in requests:
        assert harness.tokens(request.request_id) == answer_of(request)


def test_tokens_that_it_does_not_know_are_never_shown():
    """The scripted backend refuses them."""
    harness = drafting(draft=DraftInfo(200, SMALL_ROWS))
    strange, plain = make_request([65, 66, 230, 67], 60), make_request("plain", 60)
    assert answers(harness, [strange, plain]) == [answer_of(strange), answer_of(plain)]
    slots = {row.slot for rows in harness.backend.draft_calls for row in rows}
    assert len(slots) == 1
    assert harness.scheduler.counters["accepted"] > 20


def test_drafts_of_several_share_calls_and_rows():
    harness = drafting(slots=4, draft_rows=20)
    requests = some_requests(4, 200)
    assert answers(harness, requests) == [answer_of(request) for request in requests]
    assert max(len(rows) for rows in harness.backend.draft_calls) == 4
    assert max(plan.draft_rows for plan in harness.backend.plans) <= 20
    counters = harness.scheduler.counters
    assert counters["draft_calls"] < counters["drafted"]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_it_knows_what_its_slots_hold(seed):
    """After each step `LoopHarness.check` compares with the backend."""
    rng = random.Random(seed)
    codes = {rng.randrange(200): DecodeCode.FAILED for _ in range(3)}
    harness = drafting(
        often_right(rng.choice([0.5, 0.8, 1.0])),
        rng.choice([cheap, costly]),
        slots=3,
        n_ctx=256,
        draft_codes=codes,
    )
    prompts = ["the beginning of all that is said " * 3, "x" * 40, "another beginning"]
    asked = []
    for _ in range(25):
        prompt = rng.choice(prompts) + rng.choice(["", " and more", " of it"])
        request = make_request(
            prompt,
            rng.randint(1, 60),
            cache_scope=rng.choice(["a", "b"]),
            rank=(rng.choice([0, 2]), 0.0),
        )
        asked.append(request)
        harness.submit(request)
        harness.step(rng.randint(1, 8))
        if rng.random() < 0.3:
            harness.loop.abort(rng.choice(asked).request_id)
    harness.run()
    for request in asked:
        said, wanted = harness.tokens(request.request_id), answer_of(request)
        assert said == wanted[: len(said)]
        if events(harness, request).reason is FinishReason.LENGTH:
            assert said == wanted


def test_calls_are_taken_to_cost_in_proportion_where_none_was_measured():
    times = CallTimes()
    assert times.seconds(8) == 0.0
    times.note(64, 0.064)
    assert times.seconds(8) == pytest.approx(0.008)
    assert times.seconds(128) == pytest.approx(0.128)
    times.note(1, 0.01)
    assert times.seconds(1) == pytest.approx(0.01)
    assert times.seconds(32) == pytest.approx(0.01 + 0.054 * 31 / 63)
    for _ in range(30):
        times.note(1, 0.02)
    assert times.seconds(1) == pytest.approx(0.02, rel=0.01)
    times.note(1, 9.0)
    assert times.seconds(1) == pytest.approx(0.025, rel=0.01)
    for _ in range(128):
        times.relax()
    assert times.seconds(1) < 0.01


def test_a_guess_grows_with_what_comes_true():
    guess = Guess(100)
    assert not guess.ready(102)
    assert guess.ready(103)
    assert guess.most == 1
    guess.note(1, 1, 0.01)
    guess.note(2, 2, 0.01)
    assert guess.most == 4
    before = guess.chance
    guess.note(4, 1, -0.005)
    assert guess.chance < before
    assert guess.most == 4


def test_a_guess_pauses_longer_after_losses_than_after_gains():
    guess = Guess(0)
    pauses = []
    for _ in range(3):
        guess.note(1, 0, -0.01)
        assert guess.rest(100) is False
        pauses.append(guess.paused_until - 100)
    assert pauses == [8, 16, 32]
    guess.note(10, 10, 1.0)
    assert guess.rest(100) is True
    assert guess.paused_until - 100 == 16
    assert guess.rest(200) is None
    assert guess.paused_until == 116
