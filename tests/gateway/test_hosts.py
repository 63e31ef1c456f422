"""Loading on demand, unloading, and who has to go for whom."""

from __future__ import annotations

import asyncio

import pytest

from server.core.errors import (
    ConfigError,
    Draining,
    EngineDead,
    ModelFailed,
    ModelFileError,
    ModelLoading,
)
from server.engine.interface import EngineState
from server.gateway.host import Lease
from tests.gateway.hosting import House, settle

pytestmark = pytest.mark.anyio
LONG = 1e6


def ask(house: House, name: str, patience: float = LONG) -> asyncio.Task[Lease]:
    return asyncio.create_task(house.manager.acquire(house.hosts[name], patience))


async def up(house: House, name: str) -> Lease:
    """Load a host and hold it."""
    task = ask(house, name)
    await settle()
    house.engine(name).come_up()
    return await task


async def test_a_model_is_loaded_when_somebody_asks_and_once_for_all_who_do():
    house = House({"a": 3}, budget=8)
    assert house.states() == {"a": "unloaded"}
    tasks = [ask(house, "a") for _ in range(3)]
    await settle()
    assert house.states() == {"a": "loading"}
    assert not any(task.done() for task in tasks)
    house.engine("a").come_up()
    leases = [await task for task in tasks]
    assert {lease.engine for lease in leases} == set(house.engines["a"])
    assert len(house.engines["a"]) == house.hosts["a"].loads == 1
    again = await house.manager.acquire(house.hosts["a"], LONG)
    assert house.hosts["a"].holders == 4
    for lease in [*leases, again]:
        lease.release()
        lease.release()
    assert house.hosts["a"].holders == 0


async def test_what_fits_beside_the_others_takes_nothing_from_them():
    house = House({"a": 3, "b": 4}, budget=8)
    (await up(house, "a")).release()
    lease = await up(house, "b")
    assert house.states() == {"a": "ready", "b": "ready"}
    lease.release()


async def test_what_was_used_longest_ago_goes_first():
    house = House({"a": 3, "b": 3, "c": 3}, budget=6)
    (await up(house, "a")).release()
    house.clock.advance(1)
    (await up(house, "b")).release()
    house.clock.advance(1)
    (await house.manager.acquire(house.hosts["a"], LONG)).release()
    task = ask(house, "c")
    await settle()
    assert house.states() == {"a": "ready", "b": "unloading", "c": "unloaded"}
    assert house.memory() == 6, "c must not load before the memory of b is free"
    house.let_end("b")
    await settle()
    assert house.states() == {"a": "ready", "b": "unloaded", "c": "loading"}
    house.engine("c").come_up()
    (await task).release()


async def test_nobody_goes_in_vain():
    house = House({"small": 1, "large": 5, "other": 5}, budget=6)
    (await up(house, "small")).release()
    house.clock.advance(1)
    (await up(house, "large")).release()
    task = ask(house, "other")
    await settle()
    # The small one was used longest ago, but its memory would not be enough.
    assert house.states() == {"small": "ready", "large": "unloading", "other": "unloaded"}
    house.let_end("large")
    await settle()
    house.engine("other").come_up()
    (await task).release()
    assert house.states() == {"small": "ready", "large": "unloaded", "other": "ready"}


async def test_a_busy_model_is_drained_not_cut():
    house = House({"a": 5, "b": 5}, budget=8)
    first, second = await up(house, "a"), None
    second = await house.manager.acquire(house.hosts["a"], LONG)
    waiting = ask(house, "b")
    await settle()
    late = ask(house, "a")
    await settle()
    assert house.states() == {"a": "ready", "b": "unloaded"}
    assert house.hosts["a"].closing
    assert not late.done(), "who comes later must not keep the older waiter out for ever"
    first.release()
    await settle()
    assert not house.engine("a").stopping
    second.release()
    await settle()
    assert house.engine("a").stopping
    house.let_end("a")
    await settle()
    house.engine("b").come_up()
    lease = await waiting
    # And back: the one who came late is next.
    assert house.hosts["b"].closing
    lease.release()
    await settle()
    house.let_end("b")
    await settle()
    house.engine("a").come_up()
    (await late).release()
    assert len(house.engines["a"]) == 2, "each load has a fresh engine"


async def test_who_gives_up_frees_the_model_that_was_to_go_for_them():
    house = House({"a": 5, "b": 5}, budget=8)
    lease = await up(house, "a")
    waiting = ask(house, "b")
    await settle()
    late = ask(house, "a")
    await settle()
    assert not late.done()
    waiting.cancel()
    (await late).release()
    lease.release()
    assert house.states() == {"a": "ready", "b": "unloaded"}


async def test_idle_models_are_fewer_victims_than_busy_ones():
    house = House({"a": 4, "b": 4, "c": 4}, budget=8)
    busy = await up(house, "a")
    house.clock.advance(5)
    (await up(house, "b")).release()
    task = ask(house, "c")
    await settle()
    assert house.states() == {"a": "ready", "b": "unloading", "c": "unloaded"}
    assert not house.hosts["a"].closing
    house.let_end("b")
    await settle()
    house.engine("c").come_up()
    (await task).release()
    busy.release()


async def test_a_failed_load_answers_all_who_wait_and_can_be_tried_again():
    house = House({"a": 3, "b": 3}, budget=8)
    tasks = [ask(house, "a") for _ in range(2)]
    await settle()
    other = ask(house, "b")
    await settle()
    house.engine("a").held.set()
    house.fail("a", ModelFileError("the file is cut off"))
    for task in tasks:
        with pytest.raises(ModelFailed, match="cut off"):
            await task
    assert house.states() == {"a": "failed", "b": "loading"}
    assert house.hosts["a"].error is not None
    house.engine("b").come_up()
    (await other).release()
    again = ask(house, "a")
    await settle()
    house.engine("a").come_up()
    (await again).release()
    assert house.hosts["a"].error is None


@pytest.mark.parametrize("error", [ConfigError("no such thing"), RuntimeError("no such thing")])
async def test_an_engine_that_cannot_be_made_answers_too(monkeypatch, error):
    house = House({"a": 3}, budget=8)

    def broken(_name: str):
        raise error

    monkeypatch.setattr(house, "_make", broken)
    with pytest.raises(ModelFailed, match="no such thing"):
        await house.manager.acquire(house.hosts["a"], LONG)
    assert house.states() == {"a": "failed"}


async def test_a_wait_that_is_too_long_is_told_with_an_estimate():
    house = House({"a": 3}, budget=8)
    with pytest.raises(ModelLoading, match="'a' is loading, 0%") as caught:
        await house.manager.acquire(house.hosts["a"], 0.01)
    assert caught.value.retry_after == 1
    # The load goes on; a quarter in five seconds leaves fifteen.
    house.clock.advance(5)
    house.engine("a").progress = 0.25
    told = house.manager.loading(house.hosts["a"])
    assert told.retry_after == pytest.approx(15)
    assert "25% done" in told.message


async def test_what_can_never_fit_is_refused_at_once():
    house = House({"a": 9}, budget=8)
    with pytest.raises(ModelFailed, match="more memory"):
        await house.manager.acquire(house.hosts["a"], LONG)
    with pytest.raises(ModelFailed, match="more memory"):
        house.manager.begin_load(house.hosts["a"])


async def test_idle_models_are_unloaded_after_their_time():
    house = House({"a": 3, "b": 3}, budget=None, keep_alive=60)
    lease = await up(house, "a")
    (await up(house, "b")).release()
    assert house.manager.next_expiry() == house.clock.now + 60
    house.clock.advance(59)
    house.manager.expire()
    assert house.states() == {"a": "ready", "b": "ready"}
    house.clock.advance(1)
    house.manager.expire()
    assert house.states() == {"a": "ready", "b": "unloading"}
    lease.release()
    assert house.manager.next_expiry() == house.clock.now + 60
    house.let_end("b")
    await settle()
    assert house.states() == {"a": "ready", "b": "unloaded"}


async def test_the_watch_unloads_by_itself():
    house = House({"a": 3}, budget=None, keep_alive=60)
    watch = asyncio.create_task(house.manager.watch())
    lease = await up(house, "a")
    house.clock.advance(3600)
    lease.release()
    house.clock.advance(60)
    house.manager._changed.set()
    await settle()
    assert house.states() == {"a": "unloading"}
    watch.cancel()


async def test_unloading_on_request_waits_for_what_runs_and_later_requests_load_again():
    house = House({"a": 3}, budget=8)
    lease = await up(house, "a")
    house.manager.begin_unload(house.hosts["a"])
    late = ask(house, "a")
    await settle()
    assert house.states() == {"a": "ready"}
    lease.release()
    await settle()
    house.let_end("a")
    await settle()
    assert house.states() == {"a": "loading"}
    house.engine("a").come_up()
    (await late).release()
    assert house.states() == {"a": "ready"}


async def test_unloading_while_loading_ends_the_load_and_answers():
    house = House({"a": 3}, budget=8)
    task = ask(house, "a")
    await settle()
    house.manager.begin_unload(house.hosts["a"])
    with pytest.raises(ModelLoading, match="told to unload"):
        await task
    await settle()
    house.let_end("a")
    await settle()
    assert house.states() == {"a": "unloaded"}


async def test_the_end_of_a_load_that_was_given_up_is_not_taken_for_the_next_ones():
    house = House({"a": 3}, budget=8)
    house.manager.begin_load(house.hosts["a"])
    await settle()
    house.manager.begin_unload(house.hosts["a"])
    task = ask(house, "a")
    await settle()
    house.let_end("a")
    await settle()
    assert len(house.engines["a"]) == 2
    assert house.states() == {"a": "loading"}
    assert not task.done()
    house.engine("a").come_up()
    (await task).release()


async def test_loading_on_request_holds_on_to_nothing():
    house = House({"a": 3}, budget=8)
    for _ in range(2):
        house.manager.begin_load(house.hosts["a"])
        assert house.states() == {"a": "loading"}, "told at once"
    await settle()
    house.engine("a").come_up()
    await settle()
    assert house.states() == {"a": "ready"}
    assert house.hosts["a"].holders == 0
    house.manager.begin_load(house.hosts["a"])
    await settle()
    assert house.hosts["a"].loads == 1


async def test_an_answer_that_crosses_with_giving_up_is_undone():
    house = House({"a": 3}, budget=8)
    task = ask(house, "a")
    await settle()
    host = house.hosts["a"]
    house.engine("a").come_up()
    (waiter,) = house.manager._line
    waiter.future.add_done_callback(lambda _: task.cancel())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.holders == 0


async def test_a_dead_engine_is_told_and_can_be_unloaded():
    house = House({"a": 3}, budget=8)
    (await up(house, "a")).release()
    house.engine("a").state = EngineState.DEAD
    house.engine("a").dead_reason = "the loop raised"
    with pytest.raises(EngineDead, match="the loop raised"):
        await house.manager.acquire(house.hosts["a"], LONG)
    house.manager.begin_unload(house.hosts["a"])
    house.let_end("a")
    await settle()
    (await up(house, "a")).release()


async def test_counters_outlive_their_engines():
    house = House({"a": 3}, budget=8)
    (await up(house, "a")).release()
    assert house.hosts["a"].counters()[0]["steps"] == 7
    house.manager.begin_unload(house.hosts["a"])
    house.let_end("a")
    await settle()
    assert house.hosts["a"].counters()[0]["steps"] == 7
    (await up(house, "a")).release()
    counts, seconds = house.hosts["a"].counters()
    assert (counts["steps"], seconds) == (14, 1.0)


async def test_the_end_answers_everybody():
    house = House({"a": 5, "b": 5}, budget=8)
    lease = await up(house, "a")
    waiting = ask(house, "b")
    await settle()
    house.let_end("a")
    await house.manager.stop()
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await ask(house, "b")
    lease.release()
    assert house.memory() == 0


async def test_those_that_are_loaded_look_anew_at_what_is_pinned():
    house = House({"a": 3, "b": 4}, budget=8)
    (await up(house, "a")).release()
    house.manager.warm()
    assert house.engine("a").warmed == 1
    assert house.engines["b"] == []
