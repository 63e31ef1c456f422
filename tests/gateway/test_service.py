"""From a spec to running sequences, and every way it can end."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from server.core.clock import SystemClock
from server.core.errors import (
    ContextLengthExceeded,
    DeadlineUnreachable,
    EngineTimeout,
    GenerationFailed,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    QueueTimeout,
    RateLimited,
    TotalTimeout,
)
from server.core.events import Delta, Finished, Started
from server.gateway.agent import Agent
from server.gateway.prompter import Prompter
from server.gateway.rate_limit import RateLimits
from server.gateway.spec import ChatPrompt, GenerationSpec, TextPrompt, TokenPrompt
from tests.api.asking import post
from tests.factories import MODEL_INFO
from tests.fakes import CONTROL, MARKERS, FakeEngine, FakeTokenizer, Script
from tests.serving import MODEL, Stack

pytestmark = pytest.mark.anyio


def spec(*prompts, **fields):
    return GenerationSpec("id", MODEL, prompts or (TextPrompt("hello"),), **fields)


@pytest.fixture
def stack():
    made = Stack(engine=FakeEngine(manual=True))
    yield made
    made.service.shutdown()
    assert made.admission.outstanding == 0
    assert not made.engine.running
    assert not made.engine.waiting


async def test_requests_carry_what_was_asked(stack):
    sampling = {"seed": 2**32 - 1, "temperature": 0.5}
    generation = await stack.service.open(
        spec(n=3, sampling=sampling, max_tokens=7, stop=("x",), logprobs=2, reuse_prefix=False)
    )
    requests = stack.engine.requests
    assert [request.request_id for request in requests] == ["id-0", "id-1", "id-2"]
    assert [request.sampling.seed for request in requests] == [2**32 - 1, 0, 1]
    assert {(r.max_tokens, r.stop, r.logprobs, r.reuse_prefix) for r in requests} == {
        (7, ("x",), 2, False)
    }
    # Who waits for siblings that run must not be given up on.
    assert [request.deadline is None for request in requests] == [False, True, True]
    assert generation.prompt_tokens == 5
    generation.close()


async def test_several_prompts_are_numbered_prompt_by_prompt(stack):
    generation = await stack.service.open(spec(TextPrompt("a"), TokenPrompt([1, 2]), n=2))
    assert [list(r.prompt) for r in stack.engine.requests] == [[97], [97], [1, 2], [1, 2]]
    assert [choice.prompt for choice in generation.choices] == [0, 0, 1, 1]
    assert generation.prompt_tokens == 3
    generation.close()


async def test_the_default_output_is_bounded_by_what_remains(stack):
    (await stack.service.open(spec())).close()
    (await stack.service.open(spec(TextPrompt("x" * 4090)))).close()
    assert [request.max_tokens for request in stack.engine.requests] == [64, 6]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (spec(n=5), InvalidRequest),
        (spec(TextPrompt("")), InvalidRequest),
        (spec(TokenPrompt([999])), InvalidRequest),
        (spec(sampling={"logit_bias": {999: 1.0}}), InvalidRequest),
        (spec(TextPrompt("x" * 4096)), ContextLengthExceeded),
        (spec(max_tokens=4092), ContextLengthExceeded),
        (spec(ChatPrompt([{"role": "user", "content": "x" * 5000}])), ContextLengthExceeded),
        (GenerationSpec("id", "other", (TextPrompt("x"),)), ModelNotFound),
    ],
)
async def test_what_cannot_run_is_refused_and_leaves_nothing(stack, wanted, error):
    with pytest.raises(error):
        await stack.service.open(wanted)
    assert not stack.engine.requests


@pytest.mark.parametrize(
    "prompt", [TextPrompt("x" * 99_999), ChatPrompt([{"role": "user", "content": "x" * 99_999}])]
)
async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(stack, prompt):
    tokenizer = stack.engine.tokenizer
    encoded = []
    tokenizer.encode = lambda text, **_: encoded.append(text)
    with pytest.raises(ContextLengthExceeded, match="at least") as caught:
        await stack.service.open(spec(prompt))
    assert encoded == []
    assert 4096 < caught.value.prompt_tokens < 99_999


async def test_a_submission_that_fails_half_way_is_undone(stack):
    whole, left = stack.engine.submit, [2]

    def submit(request, watch):
        left[0] -= 1
        if left[0] < 0:
            raise QueueFull("no")
        return whole(request, watch)

    stack.engine.submit = submit
    with pytest.raises(QueueFull):
        await stack.service.open(spec(n=3))
    assert stack.engine.aborted == ["id-0", "id-1"]


@pytest.fixture
def slow(stack):
    """Tokenizing takes until the first event is set; the second one tells that it has begun."""
    gate, begun = threading.Event(), threading.Event()
    prompter = stack.service.router.default.prompter
    whole = prompter.encode

    def encode(prompt, n_ctx):
        begun.set()
        gate.wait(10)
        return whole(prompt, n_ctx)

    prompter.encode = encode
    yield gate, begun
    gate.set()


async def test_a_caller_cancelled_while_tokenizing_leaves_nothing(stack, slow):
    _, begun = slow
    task = asyncio.create_task(stack.service.open(spec()))
    assert await asyncio.to_thread(begun.wait, 10)
    assert stack.admission.outstanding == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stack.admission.outstanding == 0
    assert not stack.engine.requests


async def test_nobody_waits_for_a_tokenizer_for_ever(stack, slow):
    stack.service.limits = replace(stack.service.limits, connect_timeout=0.05)
    with pytest.raises(QueueTimeout, match=r"not tokenized within 0\.05 s"):
        await stack.service.open(spec())
    assert stack.admission.outstanding == 0
    assert not stack.engine.requests


async def test_the_endpoints_for_tokens_have_a_thread_of_their_own(stack):
    """A few bodies of megabytes would keep every generation waiting."""
    threads, tokenizer = set(), stack.engine.tokenizer
    whole = tokenizer.encode

    def encode(text, **how):
        threads.add(threading.current_thread())
        return whole(text, **how)

    tokenizer.encode = encode
    bodies = [{"content": "hello"}] * 5
    await asyncio.gather(*(post(stack, "/tokenize", body) for body in bodies))
    tools, threads = threads, set()
    for generation in await asyncio.gather(*(stack.service.open(spec()) for _ in range(5))):
        generation.close()
    assert len(tools) == 1
    assert threads
    assert not tools & threads


async def test_no_more_is_tokenized_than_shows_that_a_prompt_cannot_fit():
    longest = "<|" + "longest" * 10 + "|>"
    token = 256 + len(CONTROL) + len(MARKERS)
    encoded: list[int] = []
    tokenizer: Any = FakeTokenizer(markers={**MARKERS, longest: token})
    whole = tokenizer.encode

    def encode(text, **how):
        encoded.append(len(text))
        return whole(text, **how)

    tokenizer.encode = encode
    prompter = Prompter()
    prompter.bind(MODEL_INFO, tokenizer)
    encoded.clear()
    with pytest.raises(ContextLengthExceeded, match="at least 800"):
        prompter.encode(TextPrompt("x" * 7000), 100)
    assert encoded == [1600]
    assert prompter.encode(TextPrompt(longest * 95), 100) == [token] * 95


async def test_events_of_all_choices_are_merged_in_batches(stack):
    generation = await stack.service.open(spec(n=2))
    first, second = stack.engine.streams
    stack.engine.begin(first, cached=4)
    stack.engine.begin(second, cached=2, missed="evicted")
    stack.engine.say(second, "b")
    stack.engine.say(first, "a")
    assert await generation.first_events(5)
    stack.engine.finish(first)
    stack.engine.finish(second)
    events = [item async for batch in generation.events() for item in batch]
    assert {number for number, _ in events} == {0, 1}
    for number in (0, 1):
        kinds = [type(event) for at, event in events if at == number]
        assert kinds == [Started, Delta, Finished]
    assert generation.completion_tokens == 10
    assert generation.cached_tokens == 2
    assert generation.prefix_missed == "evicted"
    generation.close()
    assert not stack.engine.aborted


async def test_first_events_returns_after_the_hold(stack):
    generation = await stack.service.open(spec())
    assert not await generation.first_events(0.01)
    assert not await generation.first_events(0.0)
    stack.engine.begin(stack.engine.streams[0])
    assert not await generation.first_events(0.01)
    stack.engine.say(stack.engine.streams[0], "x")
    assert await generation.first_events(5)
    stack.engine.finish(stack.engine.streams[0])
    kinds = [type(event) async for batch in generation.events() for _, event in batch]
    assert kinds == [Started, Delta, Finished]
    generation.close()


@pytest.mark.parametrize("n", [1, 2])
async def test_a_failure_ends_the_whole_request(stack, n):
    generation = await stack.service.open(spec(n=n))
    first = stack.engine.streams[0]
    stack.engine.begin(first)
    stack.engine.say(first, "x")
    assert await generation.first_events(5)
    stack.engine.fail(first, GenerationFailed("broken"))
    seen: list[Any] = []
    with pytest.raises(GenerationFailed):
        await _collect(generation.events(), seen)
    assert any(isinstance(event, Delta) for _, event in seen)
    generation.close()
    assert len(stack.engine.aborted) == n - 1


async def test_a_wait_that_ran_out_comes_with_advice(stack):
    generation = await stack.service.open(spec())
    stack.engine.fail(stack.engine.streams[0], QueueTimeout("no slot in time"))
    with pytest.raises(QueueTimeout) as caught:
        await generation.first_events(5)
    assert caught.value.retry_after == stack.service.router.default.host.lane.retry_after()
    generation.close()


async def _collect(events, into, *, whole=False):
    async for batch in events:
        into += [batch] if whole else batch


async def test_the_engines_silence_is_bounded_in_the_line_too():
    stack = Stack(engine=FakeEngine(manual=True), read_timeout=0.03, connect_timeout=0.03)
    generation = await stack.service.open(spec())
    with pytest.raises(EngineTimeout):
        async for _ in generation.events():
            pass
    generation.close()
    assert stack.admission.outstanding == 0


async def test_steps_that_serve_others_are_no_silence():
    stack = Stack(engine=FakeEngine(manual=True), read_timeout=0.05)
    generation = await stack.service.open(spec())
    ours = stack.engine.streams[0]
    stack.engine.begin(ours)
    waiting = asyncio.create_task(generation.first_events(5))
    for _ in range(20):
        await asyncio.sleep(0.01)
        stack.engine.last_step += 1
    assert not waiting.done()
    stack.engine.say(ours, "x")
    assert await waiting
    generation.close()


async def test_waiting_with_comments_still_ends_in_a_timeout():
    stack = Stack(engine=FakeEngine(manual=True), read_timeout=0.1)
    generation = await stack.service.open(spec())
    stack.engine.begin(stack.engine.streams[0])
    batches: list[Any] = []
    with pytest.raises(EngineTimeout):
        await _collect(generation.events(idle=0.01), batches, whole=True)
    assert batches.count([]) > 1
    generation.close()


async def test_close_is_idempotent_and_frees_at_once(stack):
    generation = await stack.service.open(spec(n=2))
    generation.close()
    generation.close()
    assert stack.engine.aborted == ["id-0", "id-1"]
    assert stack.admission.outstanding == 0
    assert stack.admission.counters["released"] == 1


async def test_the_place_in_the_line(stack):
    stack.service.router.default.host.lane._rate.observe(4.0, 2)
    ahead = await stack.service.open(spec())
    generation = await stack.service.open(GenerationSpec("other", MODEL, (TextPrompt("x"),)))
    status = generation.queue_status()
    assert (status.position, status.waiting) == (2, 2)
    assert status.seconds == pytest.approx(4.0, rel=0.01)
    stack.engine.begin(stack.engine.streams[1])
    await generation.first_events(0.01)
    assert generation.queue_status() is None
    ahead.close()
    generation.close()


async def test_observations_are_told(stack):
    stack.engine.manual = False
    stack.engine.script = lambda _: Script(cached=3)
    generation = await stack.service.open(spec())
    async for _ in generation.events():
        pass
    generation.close()
    text = stack.metrics.render()[0].decode()
    for line in (
        "onegpu_prompt_tokens_total 5.0",
        "onegpu_completion_tokens_total 5.0",
        'onegpu_queue_wait_seconds_count{class="normal"} 1.0',
        "onegpu_first_token_seconds_count 1.0",
        "onegpu_aborted_total 0.0",
    ):
        assert line in text


async def test_an_agents_time_for_a_whole_answer_is_bounded():
    quick = Agent(("quick",), n_ctx=100, total_timeout=0.05)
    stack = Stack(engine=FakeEngine(manual=True), agents=(quick,))
    generation = await stack.service.open(GenerationSpec("id", "quick", (TextPrompt("x"),)))
    stack.engine.begin(stack.engine.streams[0])
    stack.engine.say(stack.engine.streams[0], "so far")
    seen: list[Any] = []
    with pytest.raises(TotalTimeout, match=r"0\.05 s"):
        await _collect(generation.events(), seen)
    assert any(isinstance(event, Delta) for _, event in seen)
    generation.close()
    assert stack.engine.aborted == ["id-0"]


async def test_an_answer_that_is_complete_is_never_too_late():
    stack = Stack(engine=FakeEngine(), agents=(Agent(("quick",), n_ctx=100, total_timeout=0.0),))
    generation = await stack.service.open(GenerationSpec("id", "quick", (TextPrompt("x"),)))
    seen: list[Any] = []
    await _collect(generation.events(), seen)
    assert isinstance(seen[-1][1], Finished)
    generation.close()


class Later(SystemClock):
    """Goes with the time, but for what a test adds."""

    more = 0.0

    def monotonic(self):
        return super().monotonic() + self.more


def load_for(stack, seconds):
    """Let the way to the model take so long."""
    clock = stack.service.clock = Later()
    whole = stack.hosts.acquire

    async def acquire(host, patience):
        clock.more += seconds
        return await whole(host, patience)

    stack.hosts.acquire = acquire


async def test_the_time_that_the_client_gives_counts_from_its_arrival(stack):
    load_for(stack, 20.0)
    generation = await stack.service.open(spec(seconds=10.0))
    with pytest.raises(TotalTimeout, match="after 10 s"):
        await generation.first_events(5)
    generation.close()


async def test_the_wait_for_the_model_counts_as_wait_for_a_slot(stack):
    load_for(stack, 40.0)
    held = stack.service.router.default.host.lane.admit(8)
    held.price([1.0] * 8, lambda _index, _rank: None)
    generation = await stack.service.open(spec())
    with pytest.raises(QueueTimeout, match="within 40 s"):
        await generation.first_events(5)
    generation.close()
    held.release()


async def test_prompts_that_the_engine_will_take_long_for_yield_each_counted_once(stack):
    stack.engine.row_seconds = 0.01
    lane = stack.service.router.default.host.lane
    held = lane.admit(8)
    held.price([1.0] * 8, lambda _index, _rank: None)
    long = await stack.service.open(spec(TextPrompt("x" * 100), n=2))
    short = await stack.service.open(spec(TextPrompt("short")))
    assert [seat.yields for seat in long._ticket.seats] == pytest.approx([6.0, 6.0])
    assert short.queue_status().position < long.queue_status().position
    for generation in (long, short):
        generation.close()
    held.release()


async def test_an_agents_time_counts_from_the_submission():
    slow = Agent(("slow",), n_ctx=4096, default_max_tokens=64, total_timeout=10.0)
    stack = Stack(engine=FakeEngine(manual=True), agents=(slow,))
    load_for(stack, 20.0)
    generation = await stack.service.open(GenerationSpec("id", "slow", (TextPrompt("x"),)))
    assert not await generation.first_events(0.01)
    generation.close()
    stack.service.shutdown()


@pytest.mark.parametrize("reason", ["tokens", "deadline"])
async def test_what_is_refused_when_it_is_priced_is_not_counted_as_aborted(reason):
    rate = RateLimits(tokens_per_minute=100) if reason == "tokens" else RateLimits()
    stack = Stack(engine=FakeEngine(manual=True), rate=rate)
    if reason == "tokens":
        stack.service._rate.take("", rate).reserve(90)
    wanted = spec(seconds=10.0 if reason == "deadline" else None)
    service: Any = stack.service
    whole = service.in_thread

    async def late(*args):
        stack.admission._clock = stack.service.router.default.host.lane._clock = Later()
        stack.admission._clock.more = 20.0
        return await whole(*args)

    service.in_thread = late
    with pytest.raises((RateLimited, DeadlineUnreachable)):
        await stack.service.open(wanted)
    metrics = stack.metrics.render()[0].decode()
    assert "onegpu_aborted_total 0.0" in metrics
    assert stack.admission.outstanding == 0
    stack.service.shutdown()
