"""Answers with a draft model, served by the engine's own loop: what they would be without, in fewer steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.core.events import Finished, FinishReason
from server.engine.host_memory import HostBudget
from server.llama.params import DraftParams
from tests.factories import LoopHarness, make_limits, make_request
from tests.llama.conftest import SCRIPTED, layouts
from tests.llama.driving import GREEDY, prompt_of
from tests.llama.test_drafts import cycles, hot_requests
from tests.models import follow

pytestmark = pytest.mark.native

OTHER = replace(SCRIPTED, seed=5)
"""The same vocabulary, but other tokens follow each other."""


def tokens_of(rows: Any) -> int:
    return sum(len(row.tokens) for row in rows)


@pytest.fixture
def make_harness(make_driver, models):
    """Serve the scripted model on a machine where rows cost little, with a draft model or without."""

    def make(draft=SCRIPTED, layout=None, host=None, **sizes: int) -> LoopHarness:
        wanted = {"slots": 4, "n_ctx": 512} | sizes
        chosen: dict[str, Any] = {}
        if draft is not None:
            chosen["draft"] = DraftParams(models.path(draft), **(layout or {}))
        backend = make_driver(
            SCRIPTED,
            **(layout or {}),
            **wanted,
            **chosen,
            draft_rows=16,
            n_batch=64,
            n_ubatch=64,
        ).backend
        limits = make_limits(
            **wanted, max_rows=64, prefill_rows=64, prefill_rows_decoding=32, draft_rows=16
        )
        harness = LoopHarness(
            limits,
            real=backend,
            cost=lambda plan: 0.01 + 1e-5 * plan.draft_rows,
            draft_cost=lambda rows: 1e-4 + 1e-6 * tokens_of(rows),
            host=host,
        )
        harness.calls = watched(backend)  # type: ignore[attr-defined]
        return harness

    return make


def watched(backend: Any) -> list[int]:
    """Note the rows of each call of the draft model, and compare its counts with llama.cpp's."""
    sizes: list[int] = []
    draft = backend._draft
    if draft is not None:
        call = draft.foresee

        def foresee(rows: Any) -> Any:
            sizes.append(tokens_of(rows))
            foreseen = call(rows)
            for slot in range(len(draft._cells)):
                held = draft._library.memory_seq_pos_max(draft._memory, slot) + 1
                assert draft.cells(slot) == held
            return foreseen

        draft.foresee = foresee
    return sizes


def serve(harness: LoopHarness, requests: Any) -> list[list[int]]:
    for request in requests:
        harness.submit(request)
    harness.run()
    return [harness.tokens(request.request_id) for request in requests]


def last(harness: LoopHarness, request: Any) -> Finished:
    event = harness.events[request.request_id][-1]
    assert isinstance(event, Finished)
    return event


def prompt_ending(seed: int, length: int) -> list[int]:
    """Return a prompt after which tokens come of which the first 72 do not repeat, and none is an end."""
    rounds = cycles(72, 100)
    around = rounds[seed % len(rounds)]
    return [*prompt_of(seed, length - 1), around[5 * seed % len(around)]]


def greedy_requests(count: int, length: int = 150) -> list[Any]:
    return [
        make_request(prompt_ending(seed, 20 + 7 * seed), length, sampling=GREEDY)
        for seed in range(1, count + 1)
    ]


@layouts
def test_the_same_file_foresees_nearly_all_and_each_step_brings_several_tokens(
    make_harness, layout
):
    harness = make_harness(layout=layout)
    (request,) = greedy_requests(1)
    assert serve(harness, [request]) == [follow(SCRIPTED, request.prompt[-1], 150)]
    counters = harness.scheduler.counters
    assert counters["accepted_by_model"] >= 0.9 * counters["drafted_by_model"] > 50
    assert counters["steps"] < 60
    assert counters["draft_rows"] == sum(harness.calls)
    assert counters["draft_calls"] == len(harness.calls)


@layouts
@pytest.mark.parametrize("draft", [SCRIPTED, OTHER], ids=["same", "other"])
def test_several_streams_say_what_they_would_without(make_harness, layout, draft):
    harness = make_harness(draft, layout)
    requests = greedy_requests(7)
    assert serve(harness, requests) == [
        follow(SCRIPTED, request.prompt[-1], 150) for request in requests
    ]
    counters = harness.scheduler.counters
    assert counters["drafted_by_model"] > 0
    assert max(harness.calls) <= 64
    if draft is OTHER:
        assert counters["accepted_by_model"] == 0
        assert counters["drafted_by_model"] < 150


@layouts
@pytest.mark.parametrize("draft", [SCRIPTED, OTHER], ids=["same", "other"])
def test_the_same_seed_says_the_same_with_a_draft_model_and_without(make_harness, layout, draft):
    """Logits of the scripted model depend on the last token alone."""
    requests = hot_requests()
    plain = serve(make_harness(None, layout), requests)
    harness = make_harness(draft, layout)
    assert serve(harness, requests) == plain
    counters = harness.scheduler.counters
    assert counters["drafted_by_model"] > counters["accepted_by_model"]
    assert (counters["accepted_by_model"] > 20) == (draft is SCRIPTED)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 9, 17, 33])
def test_the_limit_ends_an_answer_exactly(make_harness, max_tokens):
    harness = make_harness(n_ctx=256)
    first, request = greedy_requests(2, max_tokens)
    assert serve(harness, [first, request]) == [
        follow(SCRIPTED, one.prompt[-1], max_tokens) for one in (first, request)
    ]
    assert last(harness, request).reason is FinishReason.LENGTH


def test_a_context_that_fills_up_to_its_last_cell(make_harness):
    harness = make_harness(n_ctx=256)
    requests = [make_request(prompt_ending(seed, 206), 50, sampling=GREEDY) for seed in range(1, 6)]
    assert serve(harness, requests) == [
        follow(SCRIPTED, request.prompt[-1], 50) for request in requests
    ]
    assert harness.scheduler.counters["accepted_by_model"] > 50


def test_a_stop_string_within_a_draft(make_harness):
    request = make_request(prompt_ending(3, 40), 200, sampling=GREEDY)
    alone = make_harness(None)
    (said,) = serve(alone, [request])
    text = alone.text(request.request_id)
    stop = text[len(text) // 2 :][:4]
    stopped = replace(request, request_id="stopped", stop=(stop,))
    harness = make_harness()
    (shorter,) = serve(harness, [stopped])
    assert len(shorter) < len(said)
    assert shorter == said[: len(shorter)]
    assert harness.text("stopped") == text[: text.index(stop)]
    assert last(harness, stopped).stop_match == stop


@layouts
@pytest.mark.parametrize("steps", [3, 6, 9])
def test_an_abort_spares_neighbour_and_heir(make_harness, layout, steps):
    harness = make_harness(layout=layout, slots=2)
    victim, neighbour, heir = greedy_requests(3)
    for request in (victim, neighbour, heir):
        harness.submit(request)
    harness.step(steps)
    harness.loop.abort(victim.request_id)
    harness.run()
    for request in (neighbour, heir):
        wanted = follow(SCRIPTED, request.prompt[-1], 150)
        assert harness.tokens(request.request_id) == wanted
    assert last(harness, victim).reason is FinishReason.ABORTED


@layouts
def test_shared_parked_and_preempted_prefixes(make_harness, layout):
    """More prompts than slots, with a common beginning, and some that make way for others."""
    host = HostBudget(1 << 24)
    harness = make_harness(layout=layout, host=host, slots=2)
    common = prompt_of(9, 120)
    requests = [
        make_request(
            [*common, *prompt_ending(seed, 5)],
            80,
            sampling=GREEDY,
            rank=(2 if seed < 4 else 0, 0.0),
        )
        for seed in range(8)
    ]
    for request in requests:
        harness.submit(request)
        harness.step(4)
    harness.run()
    for request in requests:
        wanted = follow(SCRIPTED, request.prompt[-1], 80)
        assert harness.tokens(request.request_id) == wanted
    again = [replace(request, request_id=f"again-{request.request_id}") for request in requests]
    assert serve(harness, again) == [follow(SCRIPTED, one.prompt[-1], 80) for one in again]
    counters = harness.scheduler.counters
    assert counters["preempted"] > 0
    assert counters["cached_tokens"] > 1000
    assert counters["accepted_by_model"] > 300


@pytest.mark.parametrize("code", [1, 2, -1, -3])
def test_calls_of_the_draft_model_that_fail_cost_drafts_alone(make_harness, code):
    harness = make_harness()
    draft, calls = harness.real._draft, []
    real = draft._library

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def decode(self, *arguments: Any) -> int:
            calls.append(code)
            return code if len(calls) in (3, 9, 10) else real.decode(*arguments)

    draft._library = Failing()
    requests = greedy_requests(3)
    assert serve(harness, requests) == [
        follow(SCRIPTED, request.prompt[-1], 150) for request in requests
    ]
    counters = harness.scheduler.counters
    assert counters["draft_failed"] == 3
    assert counters["failed"] == 0
    assert counters["accepted_by_model"] > 50
    draft._library = real
