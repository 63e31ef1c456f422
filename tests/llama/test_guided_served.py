"""Answers with a form, served by the engine's own loop: pauses, drafts and failed calls change none of them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from server.core.events import Delta, Failed, Finished, FinishReason
from server.core.request import Constraint, GenerationRequest, SamplingParams, Thinking
from server.engine.grammar import GrammarSource
from server.engine.host_memory import HostBudget
from server.llama.params import DraftParams
from tests.factories import LoopHarness, make_limits, make_request
from tests.llama.conftest import SCRIPTED, layouts
from tests.llama.driving import GREEDY, prompt_of

pytestmark = pytest.mark.native

LONG = {"type": "array", "items": {"enum": ["left", "right", 17]}, "minItems": 9, "maxItems": 12}
"""Repeats itself, so that drafts come true, and ends."""
HOT = 9.0
"""At which the scripted model says anything."""


def serve(backend: Any, requests: Any, **limits: int) -> LoopHarness:
    wanted = {"slots": 4, "n_ctx": 512, "max_rows": 256, "prefill_rows": 64} | limits
    harness = LoopHarness(
        make_limits(**wanted), real=backend, cost=lambda plan: 0.01 + 1e-5 * plan.draft_rows
    )
    for request in requests:
        harness.submit(request)
    harness.run()
    return harness


def bound(backend: Any, seed: int, schema: Any = LONG, **fields: Any) -> GenerationRequest:
    """A request for JSON after a little reasoning."""
    source = GrammarSource("json_schema", json.dumps(schema))
    markers = backend.tokenizer.marker_tokens
    thinking = Thinking(markers["<think>"], markers["</think>"], inside=True, budget=9)
    return make_request(
        prompt_of(seed, 40),
        300,
        sampling=SamplingParams(temperature=HOT, seed=seed),
        constraint=Constraint(backend.tokenizer.grammars.compile(source)),
        thinking=thinking,
        **fields,
    )


def answer(harness: LoopHarness, request: GenerationRequest) -> Any:
    """The JSON that came, after the reasoning."""
    events = harness.events[request.request_id]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.STOP
    text = "".join(event.text for event in events if isinstance(event, Delta))
    return json.loads(text.partition("</think>")[2])


def check(harness: LoopHarness, *requests: GenerationRequest) -> None:
    for request in requests:
        items = answer(harness, request)
        assert 9 <= len(items) <= 12
        assert set(items) <= {"left", "right", 17}


@layouts
@pytest.mark.parametrize("drafter", ["lookup", "model"])
def test_drafts_change_nothing(make_driver, models, layout, drafter):
    def run(**params: Any) -> tuple[list[list[int]], Any]:
        backend = make_driver(SCRIPTED, **layout, n_ctx=512, **params).backend
        requests = [bound(backend, seed) for seed in range(4)]
        harness = serve(backend, requests, draft_rows=params.get("draft_rows", 0))
        check(harness, *requests)
        return [harness.tokens(request.request_id) for request in requests], harness.scheduler

    plain, _ = run()
    chosen = {"draft": DraftParams(models.path(SCRIPTED), **layout)} if drafter == "model" else {}
    drafted, scheduler = run(draft_rows=16, **chosen)
    assert drafted == plain
    assert scheduler.counters["drafted"] > scheduler.counters["accepted"] > 0


@pytest.mark.parametrize("moments", [(2,), (9,), (10, 45)])
def test_a_preempted_answer_goes_on_where_it_was(make_driver, moments):
    backend = make_driver(SCRIPTED, slots=1, n_ctx=512).backend
    limits = make_limits(slots=1, n_ctx=512)
    harness = LoopHarness(limits, host=HostBudget(1 << 30), real=backend)
    whole = bound(backend, 5, rank=(2, 0.0, 0))
    harness.submit(whole)
    harness.run()
    backend.truncate(0, 0)
    harness.scheduler.pool.evict_idle()
    again = bound(backend, 5, rank=(2, 0.0, 0))
    harness.submit(again)
    for moment in moments:
        while again.request_id not in harness.events or len(tokens(harness, again)) < moment:
            harness.step()
        harness.submit(make_request(prompt_of(moment, 30), 3, rank=(0, 0.0, 0)))
        harness.step()
        assert harness.scheduler.preempted == 1
    harness.run()
    assert harness.scheduler.counters["resumed"] == len(moments)
    check(harness, whole, again)
    assert tokens(harness, again) == tokens(harness, whole)


def tokens(harness: LoopHarness, request: GenerationRequest) -> list[int]:
    events = harness.events.get(request.request_id, ())
    return [token for one in events if isinstance(one, Delta) for token in one.token_ids]


@layouts
@pytest.mark.parametrize("code", [2, -3])
def test_calls_that_fail_change_nothing(make_driver, layout, code):
    backend = make_driver(SCRIPTED, **layout, n_ctx=512).backend
    requests = [bound(backend, seed) for seed in range(3)]
    plain = serve(backend, requests)
    wanted = [plain.tokens(request.request_id) for request in requests]
    for slot in range(4):
        backend.truncate(slot, 0)
    real, calls = backend._library, itertools.count(1)

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def decode(self, *arguments: Any) -> int:
            done = real.decode(*arguments)
            return code if next(calls) % 7 == 0 else done

    backend._library = Failing()
    requests = [bound(backend, seed) for seed in range(3)]
    failing = serve(backend, requests)
    backend._library = real
    check(failing, *requests)
    assert [failing.tokens(request.request_id) for request in requests] == wanted
    name = "decode_aborted" if code == 2 else "decode_failed"
    assert failing.scheduler.counters[name] > 5


def test_a_form_that_cannot_be_followed_ends_its_answer_alone(make_driver):
    backend = make_driver(SCRIPTED, n_ctx=512).backend
    forbidden = SamplingParams(temperature=1.0, seed=1, logit_bias={ord("["): float("-inf")})
    good, bad = bound(backend, 1), bound(backend, 2)
    bad = GenerationRequest(bad.request_id, bad.prompt, 300, forbidden, constraint=bad.constraint)
    harness = serve(backend, [good, bad])
    check(harness, good)
    assert isinstance(harness.events[bad.request_id][-1], Failed)


def test_stop_strings_wait_for_the_answer(make_driver):
    """The scripted answer thinks: "Hello there … <think> hm</think>!"."""
    backend = make_driver(SCRIPTED, n_ctx=512).backend
    markers = backend.tokenizer.marker_tokens
    thinking = Thinking(markers["<think>"], markers["</think>"], inside=True)
    prompt = [*prompt_of(1, 10), 10]
    texts = {}
    for thought in (None, thinking):
        request = make_request(prompt, 50, sampling=GREEDY, stop=("there", "!"), thinking=thought)
        harness = serve(backend, [request])
        texts[thought] = "".join(
            event.text for event in harness.events[request.request_id] if isinstance(event, Delta)
        )
        backend.truncate(0, 0)
    assert texts == {None: "Hello ", thinking: "Hello there你<think> hm</think>"}
