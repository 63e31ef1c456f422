"""What keys grant, and the line seen through the service."""

from __future__ import annotations

import pytest

from server.core.errors import EngineDead, RateLimited
from server.gateway.entitlement import rate_limits, standing
from server.gateway.fair_queue import Priority
from server.gateway.principal import Principal
from server.gateway.rate_limit import RateLimits
from server.gateway.spec import GenerationSpec, TextPrompt
from server.store.keys import KeyLimits
from tests.fakes import FakeEngine
from tests.serving import MODEL, Stack

DEFAULT = RateLimits(12, 3, 6000, 5)


def principal(name="k", **limits) -> Principal:
    return Principal(key_id=name, limits=KeyLimits(**limits))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, DEFAULT),
        ({"rpm": 60}, RateLimits(60, None, 6000, 5)),
        ({"rpm": 60, "burst": 9}, RateLimits(60, 9, 6000, 5)),
        ({"burst": 9}, RateLimits(12, 9, 6000, 5)),
        ({"rpm": 0, "tpm": 0, "max_concurrent": 0}, RateLimits(None, None, None, None)),
        ({"tpm": 100, "max_concurrent": 1}, RateLimits(12, 3, 100, 1)),
    ],
)
def test_a_keys_own_limits_win_and_zero_lifts_them(own, expected):
    assert rate_limits(principal(**own), DEFAULT) == expected


def test_priority_and_weight_are_the_keys():
    found = standing(principal("a", priority="batch", weight=2.5))
    assert (found.key, found.priority, found.weight) == ("a", Priority.BATCH, 2.5)
    assert standing(Principal()).priority is Priority.NORMAL


def spec(name, who=None, **fields):
    return GenerationSpec(name, MODEL, (TextPrompt("x"),), principal=who or Principal(), **fields)


@pytest.fixture
def stack():
    made = Stack(engine=FakeEngine(manual=True, slots=1))
    yield made
    made.service.shutdown()
    assert made.admission.outstanding == 0


@pytest.mark.anyio
async def test_who_does_not_read_keeps_no_slot(stack):
    first, second, third = [await stack.service.open(spec(name)) for name in "abc"]
    assert [one.request_id for one in stack.engine.requests] == ["a-0", "b-0"]
    stack.engine.begin(stack.engine.streams[0])
    stack.engine.finish(stack.engine.streams[0])
    assert [one.request_id for one in stack.engine.requests] == ["a-0", "b-0", "c-0"]
    assert third.queue_status().position == 2
    for generation in (first, second, third):
        generation.close()


@pytest.mark.anyio
async def test_who_gives_up_in_the_line_never_reaches_the_engine(stack):
    held = [await stack.service.open(spec(name)) for name in "abc"]
    held[2].close()
    held[0].close()
    held[1].close()
    assert [one.request_id for one in stack.engine.requests] == ["a-0", "b-0"]


@pytest.mark.anyio
async def test_keys_take_turns(stack):
    held = [await stack.service.open(spec(f"g{i}", principal("greedy"))) for i in range(5)]
    stack.engine.begin(stack.engine.streams[0])
    held.append(await stack.service.open(spec("m", principal("modest"))))
    submitted = {one.request_id: one.rank for one in stack.engine.requests}
    assert submitted["m-0"] < submitted["g1-0"]
    for generation in reversed(held):
        generation.close()


@pytest.mark.anyio
async def test_an_engine_that_refuses_is_told_to_who_waits(stack):
    held = [await stack.service.open(spec(name)) for name in "abc"]

    def refuse(*_):
        raise EngineDead("gone")

    stack.engine.submit = refuse
    stack.engine.begin(stack.engine.streams[0])
    stack.engine.finish(stack.engine.streams[0])
    with pytest.raises(EngineDead):
        await held[2].first_events(5)
    for generation in held:
        generation.close()


@pytest.mark.anyio
async def test_only_what_was_used_is_charged(stack):
    who = principal(tpm=1000, max_concurrent=1)
    generation = await stack.service.open(spec("a", who, max_tokens=900))
    assert 99 <= stack.service.windows(who)["tokens"].remaining < 600
    with pytest.raises(RateLimited, match="1 requests at once"):
        await stack.service.open(spec("b", who))
    stack.engine.begin(stack.engine.streams[0])
    stack.engine.say(stack.engine.streams[0], "four")
    stack.engine.finish(stack.engine.streams[0], completion=4)
    async for _ in generation.events():
        pass
    generation.close()
    assert stack.service.windows(who)["tokens"].remaining >= 995
    (await stack.service.open(spec("c", who, max_tokens=900))).close()
    assert stack.service.windows(who)["tokens"].remaining >= 995
