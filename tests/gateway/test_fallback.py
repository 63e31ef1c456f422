"""Who answers for a model that cannot, and when nobody does."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server.core.errors import (
    ContextLengthExceeded,
    EngineDead,
    GenerationFailed,
    ModelFailed,
    ModelFileError,
    ModelLoading,
    QueueFull,
    RateLimited,
    Unavailable,
)
from server.gateway.agent import Agent
from server.gateway.generation import StandIn
from server.gateway.gpu_guard import GuardLimits, GuardState, Sample
from server.gateway.principal import Principal
from server.gateway.rate_limit import RateLimits
from server.gateway.spec import ChatPrompt, GenerationSpec, TextPrompt, TokenPrompt
from server.store.keys import KeyLimits
from tests.gateway.hosting import settle
from tests.serving import CARD, MODEL
from tests.standby import Trio

pytestmark = pytest.mark.anyio


def spec(text: str = "hello", **fields) -> GenerationSpec:
    return GenerationSpec("id", MODEL, (TextPrompt(text),), **fields)


@pytest.fixture
def trio():
    made = Trio()
    yield made
    made.service.shutdown()
    assert made.admission.outstanding == 0
    assert not any(host.holders for host in made.hosts.hosts)


async def who(trio, wanted) -> StandIn | None:
    """Open, look who it is, close."""
    generation = await trio.fallback.course(wanted).open()
    found = generation.stand_in
    assert generation.model == (found.model if found else MODEL)
    generation.close()
    return found


async def test_a_model_that_is_well_answers_itself(trio):
    assert await who(trio, spec()) is None
    assert not trio.fallback.counters


async def test_the_first_target_whose_context_holds_the_prompt_answers(trio):
    trio.kill(MODEL)
    assert await who(trio, spec()) == StandIn("small", "dead")
    assert await who(trio, spec("x" * 100)) == StandIn("large", "dead")
    assert trio.fallback.counters == {(MODEL, "small", "dead"): 1, (MODEL, "large", "dead"): 1}


async def test_where_nobody_can_the_models_own_error_is_told(trio):
    trio.kill(MODEL, "small", "large")
    with pytest.raises(EngineDead, match="fake-model is dead"):
        await who(trio, spec())
    assert not trio.fallback.counters


async def test_a_prompt_that_no_target_holds_is_the_models_own_affair(trio):
    trio.kill(MODEL)
    with pytest.raises(EngineDead, match="fake-model is dead"):
        await who(trio, spec("x" * 5000))


async def test_a_request_may_refuse_it(trio):
    trio.kill(MODEL)
    with pytest.raises(EngineDead):
        await who(trio, spec(fallback=False))


async def test_a_loading_model_is_answered_for_by_one_that_is_loaded(trio):
    trio.unloaded(MODEL, "small")
    assert await who(trio, spec()) == StandIn("large", "loading")
    assert trio.engine.starts == 1, "the model itself comes up meanwhile"
    assert trio.small.starts == 0, "nobody waits for one load in order not to wait for another"
    trio.engine.come_up()
    await settle()
    assert await who(trio, spec()) is None


async def test_a_loading_model_is_waited_for_where_no_target_is_loaded(trio):
    trio.unloaded(MODEL, "small", "large")
    task = asyncio.create_task(who(trio, spec()))
    await settle()
    trio.engine.come_up()
    assert await task is None


async def test_what_ended_for_good_is_worth_a_targets_load(trio):
    trio.unloaded("small")
    trio.kill(MODEL)
    task = asyncio.create_task(who(trio, spec()))
    await settle()
    assert trio.small.starts == 1
    trio.small.come_up()
    assert await task == StandIn("small", "dead")


async def test_a_target_that_does_not_load_is_passed_over(trio):
    trio.unloaded("small")
    trio.kill(MODEL)
    task = asyncio.create_task(who(trio, spec()))
    await settle()
    trio.small.break_down(ModelFileError("cut off"))
    assert await task == StandIn("large", "dead")


async def test_a_model_that_did_not_load_is_tried_again_every_now_and_then(trio):
    trio.unloaded(MODEL)

    async def fail() -> None:
        await settle()
        trio.engine.break_down(ModelFileError("cut off"))
        await settle()
        trio.engine.loaded.clear()

    await who(trio, spec())
    await fail()
    assert trio.engine.starts == 1
    # A load had failed before anybody stood in for it: the first look tries at once.
    assert await who(trio, spec()) == StandIn("small", "failed")
    await fail()
    for _ in range(5):
        assert await who(trio, spec()) == StandIn("small", "failed")
    await settle()
    assert trio.engine.starts == 2
    trio.still.advance(31)
    await who(trio, spec())
    await fail()
    assert trio.engine.starts == 3


async def test_a_full_card_hands_over_to_what_is_not_on_it(trio):
    trio.shed = {trio.host(MODEL), trio.host("small")}
    assert await who(trio, spec()) == StandIn("large", "gpu_memory")
    trio.shed = set()
    assert await who(trio, spec()) is None


async def test_the_guard_of_the_card_is_asked():
    trio = Trio(gpu=GuardLimits(rule="used", hold=10.0))
    trio.fallback._shedding = trio.guard.reason
    held: list[StandIn | None] = []
    for at in (0.0, 11.0):
        trio.guard.observe({CARD: Sample(at=at, total=2**34, free=0)})
        if trio.guard.cards[0].guard.state is GuardState.SHEDDING:
            held.append(await who(trio, spec()))
    assert held == [StandIn("small", "gpu_memory")]
    trio.service.shutdown()


async def test_a_model_that_stands_still_is_answered_for(trio):
    trio.engine.has_work, trio.engine.last_step = True, -1e9
    assert await who(trio, spec()) == StandIn("small", "stalled")


async def full_line(trio) -> list:
    """Take the first model's slots and every place behind them."""
    trio.engine.manual = True
    held = [
        await trio.service.open(replace(spec(), request_id=f"r{i}"))
        for i in range(trio.engine.slots + trio.max_queue)
    ]
    assert trio.admission.waiting == trio.max_queue
    return held


@pytest.mark.parametrize("configured", [False, True])
async def test_a_full_line_counts_only_where_that_is_said(trio, configured):
    trio.stand_in({MODEL: ("large",)}, *(["queue_full"] if configured else []))
    held = await full_line(trio)
    if configured:
        assert await who(trio, spec()) == StandIn("large", "queue_full")
    else:
        with pytest.raises(QueueFull):
            await who(trio, spec())
    for generation in held:
        generation.close()


async def test_reasons_that_are_left_out_do_not_count(trio):
    routes = trio.service.router.routes
    trio.service.router.routes = replace(routes, reasons=frozenset({"loading"}))
    trio.kill(MODEL)
    with pytest.raises(EngineDead):
        await who(trio, spec())


@pytest.mark.parametrize("model", [None, "alias"])
async def test_a_model_has_its_targets_by_whatever_name_it_is_asked_for(trio, model):
    trio.kill(MODEL)
    assert await who(trio, replace(spec(), model=model)) == StandIn("small", "dead")


# Before the first token


async def test_a_model_that_dies_before_its_first_token_is_answered_for(trio):
    trio.engine.manual = True
    task = asyncio.create_task(trio.fallback.course(spec()).begun())
    stream = await trio.engine.submitted()
    trio.engine.begin(stream)
    trio.engine.fail(stream, EngineDead("the loop raised"))
    generation = await task
    assert generation.stand_in == StandIn("small", "dead")
    assert generation.seconds_to_first_token is not None
    generation.close()


async def test_one_that_has_spoken_is_not(trio):
    trio.engine.manual = True
    course = trio.fallback.course(spec())
    task = asyncio.create_task(course.begun())
    stream = await trio.engine.submitted()
    trio.engine.begin(stream)
    trio.engine.say(stream, "x")
    generation = await task
    assert not course.recovers(generation, EngineDead("the loop raised"))
    generation.close()


async def test_what_is_the_requests_own_fault_is_not(trio):
    trio.engine.manual = True
    task = asyncio.create_task(trio.fallback.course(spec()).begun())
    trio.engine.fail(await trio.engine.submitted(), GenerationFailed("the sampler broke"))
    with pytest.raises(GenerationFailed):
        await task


async def test_a_target_that_dies_is_followed_by_the_next_and_then_by_the_models_own_error(trio):
    for engine in (trio.engine, trio.small, trio.large):
        engine.manual = True
    task = asyncio.create_task(trio.fallback.course(spec()).begun())
    for name in (MODEL, "small", "large"):
        engine = trio.engine_of(name)
        engine.fail(await engine.submitted(), EngineDead(f"{name} died"))
    with pytest.raises(EngineDead, match="fake-model died"):
        await task


async def test_after_its_targets_a_loading_model_is_waited_for(trio):
    trio.unloaded(MODEL)
    trio.stand_in({MODEL: ("large",)})
    trio.large.manual = True
    task = asyncio.create_task(trio.fallback.course(spec()).begun())
    trio.large.fail(await trio.large.submitted(), EngineDead("large died"))
    await settle()
    assert not task.done()
    trio.engine.come_up()
    generation = await task
    assert generation.stand_in is None
    generation.close()


async def test_who_gives_up_leaves_nothing_behind(trio):
    trio.kill(MODEL)
    trio.small.manual = True
    task = asyncio.create_task(trio.fallback.course(spec()).begun())
    await trio.small.submitted()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert trio.small.aborted == ["id-0"]


# Whose request it is, and what it says


async def test_a_key_gets_no_model_that_it_may_not_use(trio):
    trio.kill(MODEL)
    both = Principal("k", limits=KeyLimits(models=(MODEL, "large")))
    assert await who(trio, spec(principal=both)) == StandIn("large", "dead")
    own = Principal("k", limits=KeyLimits(models=(MODEL,)))
    with pytest.raises(EngineDead):
        await who(trio, spec(principal=own))


async def test_a_keys_limits_count_for_targets(trio):
    trio.kill(MODEL)
    short = Principal("k", limits=KeyLimits(max_context=32))
    with pytest.raises(EngineDead):
        await who(trio, spec("x" * 50, principal=short))
    assert await who(trio, spec("x" * 20, principal=short)) == StandIn("small", "dead")


async def test_a_request_counts_once_however_many_are_asked():
    trio = Trio(rate=RateLimits(requests_per_minute=2, burst=2))
    trio.kill(MODEL, "small")
    for _ in range(2):
        (await trio.fallback.course(spec()).begun()).close()
    with pytest.raises(RateLimited):
        await trio.fallback.course(spec()).begun()
    trio.service.shutdown()


async def test_work_that_came_to_nothing_is_not_charged():
    trio = Trio(rate=RateLimits(requests_per_minute=1, burst=1, tokens_per_minute=100))
    trio.engine.manual = True
    task = asyncio.create_task(trio.fallback.course(spec()).begun())
    stream = await trio.engine.submitted()
    trio.engine.begin(stream)
    trio.engine.fail(stream, EngineDead("the loop raised"))
    generation = await task
    assert generation.stand_in == StandIn("small", "dead")
    generation.close()
    windows = trio.service.windows(Principal())
    assert windows["tokens"].remaining == 100 - 5 - 5
    trio.service.shutdown()


@pytest.mark.parametrize(
    "wanted",
    [
        GenerationSpec("id", MODEL, (TokenPrompt([1, 2]),)),
        spec(sampling={"logit_bias": {1: 5.0}}),
    ],
)
async def test_token_ids_are_for_one_vocabulary_only(trio, wanted):
    trio.kill(MODEL)
    with pytest.raises(EngineDead):
        await who(trio, wanted)


async def test_what_a_target_cannot_do_is_asked_of_the_next():
    trio = Trio()
    trio.kill(MODEL)
    trio.small.slots = 1
    trio.host("small").spec = replace(trio.host("small").spec, slots=1)
    assert await who(trio, spec(n=2)) == StandIn("large", "dead")
    trio.service.shutdown()


def test_a_plain_target_takes_over_the_words_and_one_with_its_own_keeps_them():
    docs = Agent(
        ("docs",),
        n_ctx=400,
        max_tokens=50,
        system="be brief",
        tools=({"type": "function"},),
        sampling={"temperature": 0.2, "top_k": 5},
        stop=("END",),
        overflow="drop_oldest",
        total_timeout=9.0,
    )
    plain = Agent(("small",), n_ctx=64, sampling={"top_k": 9}, stop=("S",), total_timeout=20.0)
    found = plain.standing_in(docs)
    assert (found.names, found.n_ctx, found.max_tokens) == (("small",), 64, 50)
    assert (found.system, found.tools, found.default_max_tokens) == ("be brief", docs.tools, 50)
    assert found.sampling == {"temperature": 0.2, "top_k": 9}
    assert (found.stop, found.overflow, found.total_timeout) == (("END", "S"), "drop_oldest", 9.0)
    own = replace(plain, system="other").standing_in(docs)
    assert (own.system, own.tools) == ("other", ())


async def test_an_agents_words_reach_the_target(trio):
    trio.kill(MODEL)
    first, *rest = trio.service.router.served
    router = type(trio.service.router)
    served = replace(first, agent=replace(first.agent, system="be brief"))
    trio.service.router = router([served, *rest], trio.service.router.routes)
    prompt = ChatPrompt([{"role": "user", "content": "hi"}])
    generation = await trio.fallback.course(GenerationSpec("id", MODEL, (prompt,))).begun()
    assert "be brief" in bytes(t for t in trio.small.requests[0].prompt if t < 256).decode()
    generation.close()


async def test_errors_that_a_caller_can_mend_are_the_models_own(trio):
    with pytest.raises(ContextLengthExceeded):
        await who(trio, spec("x" * 5000))
    trio.unloaded(MODEL, "small", "large")
    trio.service.limits = replace(trio.service.limits, connect_timeout=0.01)
    with pytest.raises(ModelLoading):
        await who(trio, spec())


async def test_every_reason_is_one_that_a_model_can_have(trio):
    assert await who(trio, spec()) is None
    target, host = trio.service.router.default, trio.host(MODEL)
    found: list[Unavailable | None] = []
    trio.unloaded(MODEL)
    found.append(trio.fallback.trouble(target))
    host.error, host.state = ModelFileError("x"), host.state.FAILED
    found.append(trio.fallback.trouble(target))
    assert [type(one) for one in found] == [ModelLoading, ModelFailed]
