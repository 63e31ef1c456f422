"""Drafts change when tokens come, never which."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from server.core.events import Finished, FinishReason, SampledLogprobs
from server.engine.detokenizer import Detokenizer
from server.engine.lookup import Lookup
from server.engine.pace import Pace, Work
from server.engine.plan import DecodeCode, Rows, Sample
from server.engine.sequence import Sequence
from server.engine.speculation import Speculation
from tests.factories import (
    EOG,
    ByteTokenizer,
    LoopHarness,
    hashed_successor,
    make_limits,
    make_request,
    mostly_a,
    recite,
)

SCRIPTED = ("successor", "sample", "codes", "foresees", "draft_codes", "draft", "draft_cost")
VERSE = list(b"the quick brown fox jumps over the lazy dog and runs into the wood; ")
CPU = [(1, 0.016), (4, 0.047), (16, 0.098), (64, 0.136), (512, 1.1)]


def cheap(plan):
    """A GPU: rows cost little beside the weights."""
    return 0.010 + 0.0001 * rows(plan)


def costly(plan):
    """Two cores of a CPU, as measured for a 0.6B model."""
    count = rows(plan)
    (least, low), (most, high) = next(
        (one, other) for one, other in pairwise(CPU) if count <= other[0]
    )
    return low + (high - low) * (count - least) / (most - least)


def rows(plan):
    return plan.decode_rows + plan.prefill_rows + plan.draft_rows


def make_harness(cost=cheap, *, draft_rows=32, real=None, **fields):
    sizes = {"slots": 4, "n_ctx": 1024, "max_rows": 128, "prefill_rows": 64}
    scripted = {key: fields.pop(key) for key in SCRIPTED if key in fields}
    limits = make_limits(draft_rows=draft_rows, **(sizes | fields))
    return LoopHarness(limits, cost=cost, real=real, **scripted)


def answers(harness, requests):
    for request in requests:
        harness.submit(request)
    harness.run()
    return [harness.tokens(request.request_id) for request in requests]


def events(harness, request):
    last = harness.events[request.request_id][-1]
    assert isinstance(last, Finished)
    return last


@pytest.mark.parametrize("cost", [cheap, costly])
def test_text_that_repeats_comes_in_fewer_steps_and_is_the_same(cost):
    script = VERSE * 6
    request = make_request(script[:80], 300)
    harness = make_harness(cost, successor=recite(script))
    assert answers(harness, [request]) == [script[80:380]]
    counters = harness.scheduler.counters
    assert counters["speculative_steps"] > 0
    assert counters["accepted"] >= 0.9 * counters["drafted"] > 150
    # Each step beyond the prompt's two brings one token, and what was accepted.
    assert counters["steps"] == 2 + 299 - counters["accepted"]
    assert counters["generated_tokens"] == 300


def test_drafts_come_where_they_pay():
    """On a CPU few rows more cost as much as they bring; long drafts do not."""
    script = VERSE * 6
    for cost, first, later in ((cheap, 1, 1), (costly, 3, 16)):
        harness = make_harness(cost, successor=recite(script))
        answers(harness, [make_request(script[:80], 300)])
        drafts = [plan.draft_rows for plan in harness.backend.plans if plan.draft_rows]
        assert drafts[0] >= first
        assert all(rows >= later for rows in drafts[3:-1])


def seconds(harness, requests):
    before = harness.clock.now
    answers(harness, requests)
    return harness.clock.now - before - 0.01 * len(harness.backend.plans)


@pytest.mark.parametrize("cost", [cheap, costly])
def test_text_that_never_repeats_costs_nothing(cost):
    request = make_request("what is said here ", 400)
    harness = make_harness(cost)
    answers(harness, [request])
    assert harness.scheduler.counters["drafted"] == 0


@pytest.mark.parametrize("cost", [cheap, costly])
def test_predictions_that_come_true_until_they_are_trusted_cost_little(cost):
    """The worst text: each repetition breaks off where drafts begin to look good."""
    script, rng = list(VERSE), random.Random(1)
    while len(script) < 900:
        begin = rng.randrange(len(script) - 40)
        script += [*script[begin : begin + rng.choice([6, 10, 14, 18])], rng.randrange(128, 250)]
    time = {}
    for draft_rows in (0, 32):
        harness = make_harness(cost, successor=recite(script), draft_rows=draft_rows)
        time[draft_rows] = seconds(harness, [make_request(script[:70], 800)])
    assert time[32] <= 1.06 * time[0]


def test_after_drafts_that_lose_time_pauses_get_longer_and_longer(monkeypatch):
    monkeypatch.setattr(Lookup, "chance", 0.99)
    monkeypatch.setattr(Lookup, "draft", lambda _self, _tokens, most: [1] * most)
    for cost in (cheap, costly):
        harness = make_harness(cost)
        answers(harness, [make_request("nothing of this comes true ", 900)])
        steps = [number for number, plan in enumerate(harness.backend.plans) if plan.draft_rows]
        pauses = [after - before for before, after in pairwise(steps)]
        assert len(pauses) >= 5
        assert all(after > 1.5 * before for before, after in pairwise(pauses))


def test_nothing_is_drafted_while_a_step_seems_to_take_no_time():
    """Contexts explain all that calls with prefill took, and no other was measured."""
    pace = Pace(tile_rows=64)
    for attended, took in ((1000, 1.0), (3000, 3.0), (5000, 6.0)):
        pace.observe(Work(512, 0, 1000, attended), took)
    assert pace.step_seconds(1, 0, span=100, attended=100) == 0.0
    speculation = Speculation(make_limits(draft_rows=8), pace, (), Counter())
    script = VERSE * 2
    sequence = Sequence(make_request(script[:80]), Detokenizer(ByteTokenizer.pieces), 0.0)
    speculation.follow(sequence)
    assert speculation.extend([], []) == 0
    sequence.tokens.append(script[80])
    sequence.lookup.push(sequence.tokens)
    assert sequence.lookup.chance > 0
    assert speculation.extend([Rows(0, 80, [script[80]], outputs=1)], [sequence]) == 0


def test_nothing_is_drafted_while_a_prompt_is_computed():
    script = VERSE * 6
    harness = make_harness(successor=recite(script), prefill_rows_decoding=16)
    harness.submit(make_request(script[:80], 300))
    harness.step(8)
    assert harness.backend.plans[-1].draft_rows
    harness.submit(make_request("another one, whose prompt takes some steps " * 3, 5))
    harness.step(4)
    assert [plan.draft_rows for plan in harness.backend.plans[-4:]] == [0] * 4
    assert all(plan.prefill_rows for plan in harness.backend.plans[-4:])


def test_drafts_of_several_share_the_rows_and_neighbours_go_on():
    scripts = [[number, *VERSE] * 5 for number in (1, 2, 3)]

    def successor(tokens):
        return recite(scripts[tokens[0] - 1])(tokens) if tokens[0] < 4 else hashed_successor(tokens)

    harness = make_harness(successor=successor, draft_rows=20)
    requests = [make_request(script[:80], 200) for script in scripts]
    plain = make_request("neighbour", 60)
    expected = list(b"neighbour")
    for _ in range(60):
        expected.append(hashed_successor(expected))
    assert answers(harness, [*requests, plain]) == [
        *(script[80:280] for script in scripts),
        expected[9:],
    ]
    most = max(harness.backend.plans, key=lambda plan: plan.draft_rows)
    assert sum(row.outputs > 1 for row in most.rows) >= 2
    assert most.draft_rows <= 20


@pytest.mark.parametrize("gap", [0.045, 0.07, 0.1])
def test_other_streams_wait_no_longer_for_a_draft_than_they_should(gap):
    """A stream alone has no others, and takes what is fastest."""

    def slow(plan):
        return 0.04 + 0.002 * rows(plan)

    script = VERSE * 12
    harness = make_harness(slow, successor=recite(script), target_gap=gap)
    first, second = make_request(script[:80], 600), make_request(script[:90], 150)
    assert answers(harness, [first, second]) == [script[80:680], script[90:240]]
    together, alone = (
        [plan for plan in harness.backend.plans if plan.draft_rows and plan.decode_rows == streams]
        for streams in (2, 1)
    )
    # The first guess at what so many rows take may be wrong.
    assert all(slow(plan) <= 1.02 * gap for plan in together[2:])
    assert bool(together[2:]) == (gap > 0.045)
    assert max(map(slow, alone)) > 0.1


@pytest.mark.parametrize("reused", [True, False])
def test_a_reused_prefix_is_looked_up_too(reused):
    script = VERSE * 6
    harness = make_harness(successor=recite(script))
    first = make_request(script[:150], 4)
    second = make_request(script[:160], 100, reuse_prefix=reused)
    assert answers(harness, [first]) == [script[150:154]]
    before = harness.scheduler.counters["accepted"]
    assert answers(harness, [second]) == [script[160:260]]
    assert (events(harness, second).usage.cached_tokens > 0) == reused
    assert harness.scheduler.counters["accepted"] > before + 50
    harness.check()


@pytest.mark.parametrize("steps", range(3, 14))
def test_an_abort_between_drafts_spares_neighbour_and_heir(steps):
    script = VERSE * 6
    harness = make_harness(successor=recite(script), slots=2)
    victim, neighbour = make_request(script[:80], 300), make_request(script[:90], 100)
    heir = make_request(script[:170], 60)
    for request in (victim, neighbour, heir):
        harness.submit(request)
    harness.step(steps)
    harness.loop.abort(victim.request_id)
    harness.run()
    assert harness.tokens(neighbour.request_id) == script[90:190]
    assert harness.tokens(heir.request_id) == script[170:230]
    assert events(harness, victim).reason is FinishReason.ABORTED
    assert harness.scheduler.counters["accepted"] > 0


@pytest.mark.parametrize("max_tokens", range(1, 40))
def test_the_limit_ends_a_draft_exactly(max_tokens):
    script = VERSE * 3
    harness = make_harness(successor=recite(script))
    request = make_request(script[:75], max_tokens)
    assert answers(harness, [request]) == [script[75 : 75 + max_tokens]]
    assert events(harness, request).reason is FinishReason.LENGTH
    assert events(harness, request).usage.completion_tokens == max_tokens
    # A row is there to be sampled, and behind the last token nothing is.
    ends = [row.start + len(row.tokens) for plan in harness.backend.plans for row in plan.rows]
    assert max(ends) < 75 + max_tokens


@pytest.mark.parametrize("end", range(90, 110))
def test_an_answer_that_ends_within_a_repetition_ends_there(end):
    script = [*VERSE, *VERSE]
    script = [*script[:end], EOG, 1, 2, 3]
    harness = make_harness(successor=recite(script))
    request = make_request(script[:75], 60)
    assert answers(harness, [request]) == [script[75:end]]
    assert events(harness, request).reason is FinishReason.STOP


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_an_end_that_was_in_the_prompt_is_not_drafted(ignore_eos):
    turn = [*b"question? ", *b"a long answer that comes again. ", EOG]
    script = turn * 6
    harness = make_harness(successor=recite(script))
    request = make_request(script[: 2 * len(turn) + 14], 60, ignore_eos=ignore_eos)
    begin = len(request.prompt)
    end = begin + 60 if ignore_eos else 3 * len(turn) - 1
    assert answers(harness, [request]) == [script[begin:end]]
    drafts = [
        row.tokens[1:] for plan in harness.backend.plans for row in plan.rows if row.outputs > 1
    ]
    assert drafts
    assert not any(EOG in draft for draft in drafts)


@pytest.mark.parametrize("stop", ["lazy dog", "z", "wood; the", "dog and runs in"])
@pytest.mark.parametrize("begin", range(70, 78))
def test_a_stop_string_within_a_draft_ends_the_answer_and_frees_what_is_behind(stop, begin):
    script = VERSE * 5
    alone = LoopHarness(make_limits(n_ctx=1024), successor=recite(script))
    request = make_request(script[:begin], 200, stop=(stop,))
    (plain,) = answers(alone, [request])
    harness = make_harness(successor=recite(script))
    warm = make_request(script[:begin], 150)
    answers(harness, [warm])
    assert answers(harness, [request]) == [plain]
    assert harness.text(request.request_id) == alone.text(request.request_id)
    last = events(harness, request)
    assert (last.reason, last.stop_match) == (FinishReason.STOP, stop)
    harness.step()  # what was behind goes before the next step
    harness.check()
    following = make_request([*script[:begin], *plain], 50)
    assert answers(harness, [following]) == [script[begin + len(plain) :][:50]]


def test_log_probabilities_travel_with_their_tokens():
    script = VERSE * 6
    harness = make_harness(successor=recite(script))
    cells = harness.backend.cells

    def sample(slot):
        token = recite(script)(cells[slot])
        return Sample(token, SampledLogprobs(token, -len(cells[slot]), ()))

    harness.backend.sample = sample
    request = make_request(script[:80], 200, logprobs=0)
    answers(harness, [request])
    told = [
        one
        for event in harness.events[request.request_id]
        for one in getattr(event, "logprobs", ())
    ]
    assert [one.token_id for one in told] == script[80:280]
    assert [one.logprob for one in told] == [-n for n in range(80, 280)]
    assert harness.scheduler.counters["accepted"] > 50


@pytest.mark.parametrize("good", range(0, 60, 3))
def test_a_sampler_that_fails_within_a_draft_ends_its_request_alone(good):
    script = VERSE * 6
    harness = make_harness(successor=recite(script))
    bad, neighbour = make_request(script[:80], 200), make_request(script[:90], 100)
    harness.backend.fail_sample[bad.request_id] = good
    for request in (bad, neighbour):
        harness.submit(request)
    harness.run()
    assert harness.tokens(bad.request_id) == script[80 : 80 + good]
    assert harness.tokens(neighbour.request_id) == script[90:190]


@pytest.mark.parametrize(
    "code", [DecodeCode.NO_CELLS, DecodeCode.ABORTED, DecodeCode.FAILED, DecodeCode.INVALID]
)
@pytest.mark.parametrize("nth", [0, 1, 3])
def test_a_call_with_drafts_that_fails_loses_nothing(code, nth):
    script = VERSE * 6
    requests = [make_request(script[:80], 200), make_request(script[:90], 150)]
    rehearsal = make_harness(successor=recite(script))
    answers(rehearsal, requests)
    calls = [number for number, plan in enumerate(rehearsal.backend.plans) if plan.draft_rows]
    harness = make_harness(successor=recite(script), codes={calls[nth]: code})
    for request in requests:
        harness.submit(request)
    harness.run()
    assert harness.backend.plans[calls[nth]].draft_rows
    if code is DecodeCode.INVALID:
        assert harness.scheduler.counters["failed"] == 2
        return
    assert harness.tokens(requests[0].request_id) == script[80:280]
    assert harness.tokens(requests[1].request_id) == script[90:240]
    if code is DecodeCode.NO_CELLS:
        assert harness.backend.plans[calls[nth] + 1].draft_rows == 0


def test_memories_that_cannot_drop_an_end_draft_nothing():
    script = VERSE * 6
    limits = make_limits(slots=1, n_ctx=1024, draft_rows=32)
    harness = LoopHarness(limits, cost=cheap, successor=recite(script), partial_removal=False)
    assert answers(harness, [make_request(script[:80], 200)]) == [script[80:280]]
    assert harness.scheduler.counters["drafted"] == 0


class Dice:
    """A sampler per request with a seed of its own, over a distribution that the last token decides."""

    WEIGHTS = (48, 6, 4, 2, 1, 1)

    def __init__(self, harness):
        self.backend = harness.backend
        self.draws: dict[str, random.Random] = {}

    def __call__(self, slot):
        request = self.backend.open_slots[slot]
        draw = self.draws.setdefault(request.request_id, random.Random(request.sampling.seed))
        last = self.backend.cells[slot][-1]
        (offset,) = draw.choices(range(6), self.WEIGHTS)
        return Sample(97 + (last + 1 + offset) % 20)


def likeliest(tokens):
    """What the dice give four times of five."""
    return 97 + (tokens[-1] + 1) % 20


def sampled(draft_rows, count=24, length=400, foresees=None):
    harness = make_harness(draft_rows=draft_rows, n_ctx=512, foresees=foresees)
    harness.backend.sample = Dice(harness)
    requests = [
        make_request("abcdefgh", length, sampling=seeded(number), request_id=f"s{number}")
        for number in range(count)
    ]
    return answers(harness, requests), harness.scheduler.counters


def seeded(seed):
    from server.core.request import SamplingParams

    return SamplingParams(seed=seed)


@pytest.mark.parametrize("foresees", [None, likeliest])
def test_the_same_seed_draws_the_same_text_with_and_without_drafts(foresees):
    plain, _ = sampled(0)
    drafted, counters = sampled(32, foresees=foresees)
    assert (counters["accepted_by_model"] > 1000) == (foresees is not None)
    assert counters["drafted"] > counters["accepted"] > 1000
    assert drafted == plain


@pytest.mark.parametrize("foresees", [None, likeliest])
def test_sampled_statistics_are_those_of_the_distribution(foresees):
    """Chi-square over the steps from token to token."""
    texts, counters = sampled(32, count=40, foresees=foresees)
    assert (counters["accepted_by_model"] > 2000) == (foresees is not None)
    assert counters["accepted"] > 2000
    seen: Counter[int] = Counter()
    for text in texts:
        seen.update((after - 97 - before - 1) % 20 for before, after in pairwise(text))
    total = sum(seen.values())
    assert set(seen) <= set(range(6))
    expected = [total * weight / sum(Dice.WEIGHTS) for weight in Dice.WEIGHTS]
    chi_square = sum((seen[i] - value) ** 2 / value for i, value in enumerate(expected))
    assert chi_square < 20.5  # 5 degrees of freedom, one in a thousand; seeds are fixed


def test_drafts_that_half_come_true_leave_every_answer_as_it_was():
    plain = make_harness(draft_rows=0, successor=mostly_a)
    drafting = make_harness(successor=mostly_a)
    requests = [make_request(f"request {number} " * number, 150) for number in range(1, 8)]
    assert answers(drafting, requests) == answers(plain, requests)
    counters = drafting.scheduler.counters
    assert 0.2 * counters["drafted"] < counters["accepted"] < 0.95 * counters["drafted"]
