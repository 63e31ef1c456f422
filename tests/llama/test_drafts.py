"""Rows of a draft: sampled one after the other until one does not come true, as if there had been no draft."""

from __future__ import annotations

from typing import Any

import pytest

from server.core.request import GenerationRequest, SamplingParams
from server.engine.plan import DecodeCode, Rows, StepPlan
from tests.factories import LoopHarness, make_limits, make_request
from tests.llama.conftest import SCRIPTED, layouts
from tests.llama.driving import GREEDY, prompt_of
from tests.models import follow, successors, vocabulary

pytestmark = pytest.mark.native

PROMPT = prompt_of(1, 20)
WANTED = follow(SCRIPTED, PROMPT[-1], 40)
HOT = 2.2
"""At which the scripted model leaves its rounds now and then."""
SAMPLERS = [
    GREEDY,
    SamplingParams(temperature=1.0, seed=7),
    SamplingParams(temperature=2.0, top_p=0.9, min_p=0.01, seed=14),
    SamplingParams(temperature=3.0, top_k=40, top_p=0.9, min_p=0.01, seed=8),
    SamplingParams(temperature=2.0, repeat_penalty=1.3, presence_penalty=0.5, seed=9),
    SamplingParams(temperature=2.0, dry_multiplier=0.8, dry_allowed_length=1, seed=10),
    SamplingParams(temperature=2.0, mirostat=1, seed=11),
    SamplingParams(temperature=2.0, mirostat=2, seed=12),
    SamplingParams(temperature=2.0, xtc_probability=0.5, xtc_threshold=0.01, seed=13),
]


def draft_step(driver: Any, slot: int, draft: list[int], *beside: Rows) -> list[int]:
    """Decode what was sampled last and a draft behind it; return the tokens that were drawn."""
    sequence, held = driver.running[slot], driver.backend.cells(slot)
    rows = [Rows(slot, held, [*sequence.tokens[held:], *draft], outputs=1 + len(draft)), *beside]
    result = driver.backend.decode(StepPlan(sorted(rows, key=lambda each: each.slot)))
    assert result.code is DecodeCode.OK
    at = sorted(row.slot for row in rows if row.outputs).index(slot)
    drawn = [sample.token for sample in result.samples[at]]
    sequence.tokens += drawn
    assert driver.backend.cells(slot) == held + len(drawn)
    assert driver.native_cells(slot) == held + len(drawn)
    return drawn


@layouts
@pytest.mark.parametrize("right", [0, 1, 4, 7])
def test_what_came_true_is_taken_and_the_rest_forgotten(make_driver, layout, right):
    driver = make_driver(SCRIPTED, **layout, draft_rows=8)
    sequence = driver.start(0, PROMPT)
    driver.run(1)
    draft = [*WANTED[1 : 1 + right], 99, *WANTED[2 + right : 9]]
    assert WANTED[1 + right] != 99
    assert draft_step(driver, 0, draft) == WANTED[1 : 2 + right]
    assert draft_step(driver, 0, WANTED[2 + right : 10 + right]) == WANTED[2 + right : 11 + right]
    driver.run(5)
    assert sequence.said == WANTED[: 16 + right]


@layouts
def test_neighbours_of_a_draft_go_on(make_driver, layout):
    driver = make_driver(SCRIPTED, **layout, draft_rows=8)
    prompts = [PROMPT, prompt_of(2, 33), prompt_of(3, 60)]
    first, second = driver.start(0, prompts[0]), driver.start(2, prompts[1])
    driver.run(1)
    late = driver.start(3, prompts[2])
    held = driver.backend.cells(2)
    beside = Rows(2, held, second.tokens[held:], outputs=1)
    prefill = Rows(3, 0, prompts[2][:24], outputs=0)
    assert draft_step(driver, 0, [*WANTED[1:4], 5, 6, 7], beside, prefill) == WANTED[1:5]
    second.tokens.append(follow(SCRIPTED, prompts[1][-1], 2)[-1])
    driver.run(9)
    assert first.said == WANTED[:14]
    assert second.said == follow(SCRIPTED, prompts[1][-1], 11)
    assert late.said == follow(SCRIPTED, prompts[2][-1], 9)


@pytest.mark.parametrize("sampling", SAMPLERS, ids=lambda sampling: str(sampling.seed))
def test_each_request_draws_by_its_own_chain_as_without_drafts(make_driver, sampling):
    """Logits of the scripted model depend on the last token alone, so the same seed draws the same text."""
    driver = make_driver(SCRIPTED, draft_rows=8)
    plain = driver.start(0, PROMPT, sampling, logprobs=2, ignore_eos=True)
    driver.run(60)
    said, told = plain.said, [sample.logprobs for sample in plain.samples]
    driver.cancel(0)
    drafted = driver.start(0, PROMPT, sampling, logprobs=2, ignore_eos=True)
    driver.run(1)
    while (count := len(drafted.said)) < 60:
        wrong = count % 5  # right up to there
        draft = [*said[count : count + wrong], 3, 4][: 60 - count - 1]
        held = driver.backend.cells(0)
        row = Rows(0, held, [*drafted.tokens[held:], *draft], outputs=1 + len(draft))
        (samples,) = driver.backend.decode(StepPlan([row])).samples
        drafted.samples += samples
        drafted.tokens += [sample.token for sample in samples]
    assert drafted.said == said
    for plainly, withal in zip(told, (one.logprobs for one in drafted.samples), strict=True):
        assert plainly.token_id == withal.token_id
        assert withal.logprob == pytest.approx(plainly.logprob, abs=1e-3)
        assert [one.token_id for one in withal.top] == [one.token_id for one in plainly.top]


@layouts
@pytest.mark.parametrize("code", [2, -3])
def test_a_failed_call_leaves_no_cell_of_a_draft(make_driver, layout, code, monkeypatch):
    driver = make_driver(SCRIPTED, **layout, draft_rows=8)
    sequence = driver.start(0, PROMPT)
    driver.run(2)
    backend = driver.backend
    real, held = backend._library, backend.cells(0)

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def decode(self, *arguments: Any) -> int:
            assert real.decode(*arguments) == 0
            return code

    backend._library = Failing()
    row = Rows(0, held, [*sequence.tokens[held:], 5, 6, 7], outputs=4)
    result = backend.decode(StepPlan([row]))
    backend._library = real
    assert result.code is (DecodeCode.ABORTED if code == 2 else DecodeCode.FAILED)
    assert result.cells == {0: held}
    assert driver.native_cells(0) == held
    driver.run(3)
    assert sequence.said == WANTED[:5]


def test_a_sampler_that_fails_within_a_draft_ends_it(make_driver):
    driver = make_driver(SCRIPTED, draft_rows=8)
    sequence = driver.start(0, PROMPT)
    driver.run(1)
    backend, calls = driver.backend, []
    real = backend._outputs._draw

    def fail_third(sampler: Any, index: int, *fed: int) -> Any:
        calls.append(index)
        if len(calls) == 3:
            raise OSError("no luck")
        return real(sampler, index, *fed)

    backend._outputs._draw = fail_third
    held = backend.cells(0)
    row = Rows(0, held, [*sequence.tokens[held:], *WANTED[1:7]], outputs=7)
    (samples,) = backend.decode(StepPlan([row])).samples
    assert [sample.token for sample in samples[:2]] == WANTED[1:3]
    assert samples[2].error is not None
    assert calls == [0, 1, 2]
    assert backend.cells(0) == driver.native_cells(0) == held + 3


def cycles(least: int = 8, most: int = 60) -> list[list[int]]:
    """The scripted model's rounds of so many ordinary tokens, which it goes for ever."""
    following, eog = successors(SCRIPTED), vocabulary(SCRIPTED).id_of(b"<|im_end|>")
    found, seen = [], set()
    for token in range(len(following)):
        if token not in seen:
            around = [token]
            while (after := following[around[-1]]) != token:
                around.append(after)
            seen.update(around)
            if least <= len(around) <= most and eog not in around:
                found.append(around)
    return found


def hot_requests() -> list[GenerationRequest]:
    """Four with seeds of their own that leave the round again and again."""
    around = cycles()[0]
    return [
        make_request(
            around[:number],
            300,
            sampling=SamplingParams(temperature=HOT, seed=number),
            ignore_eos=True,
        )
        for number in range(1, 5)
    ]


def serve(
    make_driver: Any, layout: Any, requests: Any, **params: Any
) -> tuple[list[list[int]], Any]:
    """Answer `requests` by the engine's own loop, on a machine where rows cost little."""
    backend = make_driver(SCRIPTED, **layout, n_ctx=1024, **params).backend
    limits = make_limits(
        slots=4,
        n_ctx=1024,
        max_rows=256,
        prefill_rows=64,
        prefill_rows_decoding=32,
        draft_rows=params["draft_rows"],
    )
    harness = LoopHarness(limits, real=backend, cost=lambda plan: 0.01 + 1e-5 * plan.draft_rows)
    for request in requests:
        harness.submit(request)
    harness.run()
    return [harness.tokens(request.request_id) for request in requests], harness.scheduler


@layouts
def test_served_text_that_repeats_equals_what_the_script_says(make_driver, layout):
    around = cycles()[0]
    prompts = [
        around[:6],
        [*prompt_of(2, 30), *around[3:8]],
        [*around * 3, 7, *around[:4]],
        prompt_of(4, 9),
    ]
    requests = [
        make_request(prompt, 200, sampling=GREEDY, ignore_eos=True)
        for prompt in (*prompts, [*around * 3, around[0]])
    ]
    said, scheduler = serve(make_driver, layout, requests, draft_rows=16)
    assert said == [follow(SCRIPTED, request.prompt[-1], 200) for request in requests]
    assert scheduler.counters["accepted"] > 300
    if layout["layout"] == "unified":
        assert scheduler.counters["accepted"] > 0.9 * scheduler.counters["drafted"]


@layouts
def test_the_same_seed_says_the_same_with_and_without_drafts(make_driver, layout):
    """Hot enough to leave the round again and again."""
    requests = hot_requests()
    plain, _ = serve(make_driver, layout, requests, draft_rows=0)
    drafted, scheduler = serve(make_driver, layout, requests, draft_rows=16)
    assert drafted == plain
    assert scheduler.counters["drafted"] > scheduler.counters["accepted"] > 100
    assert len({token for said in plain for token in said}) > len(cycles()[0])
