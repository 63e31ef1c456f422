"""What a hold does to a lane, to loads, to those who wait, and to the advice they get."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server.core.clock import SystemClock
from server.core.errors import Draining, GpuMemoryShort, QueueFull
from server.engine.inprocess import InProcessEngine
from server.gateway.gpu_guard import CardGuard, GuardLimits, GuardState, Sample, Share
from server.gateway.gpu_shedding import GpuGuard, WatchedCard
from server.gateway.memory import Footprint
from server.gateway.spec import GenerationSpec, TextPrompt
from server.gateway.ticket import Hold
from tests.factories import ScriptedBackend, make_limits
from tests.fakes import FakeEngine
from tests.gateway.hosting import House, settle
from tests.gateway.lining import Desk
from tests.serving import CARD, MODEL, Stack

pytestmark = pytest.mark.anyio

MIB = 1 << 20
GIB = 1 << 30


def short() -> GpuMemoryShort:
    return GpuMemoryShort("short", retry_after=7.0)


WAIT, AWAY = Hold(short, shut=False), Hold(short, shut=True)


def test_a_held_lane_begins_nothing_and_goes_on_where_it_was():
    desk = Desk(slots=2)
    for number in range(7):
        desk.ask(f"r{number}")
    desk.lane.hold(WAIT)
    desk.finish()
    assert desk.order == ["r0", "r1", "r2"]  # the engine had r2 already; it holds back by itself
    assert [name for _, name, _ in desk.engine] == ["r3"]
    desk.lane.hold(None)
    desk.seat()
    assert [name for _, name, _ in desk.engine] == ["r3", "r4"]
    while desk.running:
        desk.finish()
    assert desk.order == [f"r{number}" for number in range(7)]


def test_in_a_hold_one_waits_while_there_are_places_and_is_told_why_when_there_are_none():
    desk = Desk(slots=1, max_queue=2)
    desk.lane.hold(WAIT)
    for number in range(3):
        desk.ask(f"r{number}")
    assert desk.engine == []
    with pytest.raises(GpuMemoryShort) as refused:
        desk.enter("late")
    assert refused.value.retry_after == 7.0
    desk.lane.hold(None)
    with pytest.raises(QueueFull):
        desk.enter("later")
    assert desk.line.counters == {"admitted": 3, "gpu_memory": 1, "queue_full": 1}


def test_a_shut_lane_sends_newcomers_away_and_keeps_who_waits():
    desk = Desk(slots=1)
    desk.ask("runs")
    desk.ask("waits")
    desk.lane.hold(AWAY)
    with pytest.raises(GpuMemoryShort):
        desk.enter("new")
    assert desk.line.outstanding == 2
    desk.finish()
    desk.lane.hold(None)
    desk.seat()
    assert desk.order == ["runs", "waits"]


def test_another_models_lane_is_not_held():
    desk = Desk(slots=1)
    other = Desk(slots=1, line=desk.line)
    desk.lane.hold(AWAY)
    other.ask("free")
    assert other.order == ["free"]


def test_a_hold_is_no_measure_of_the_pace():
    desk = Desk(slots=1)
    for number in range(4):
        desk.ask(f"r{number}")
    desk.finish(seconds=2)
    before = desk.lane.expected_wait(1)
    desk.lane.hold(WAIT)
    assert desk.tickets["r3"].outlook().seconds is None
    desk.clock.advance(3600)
    desk.lane.hold(None)
    assert desk.lane.expected_wait(1) == before


async def test_a_held_model_is_not_loaded_and_nobody_waits_or_goes_for_it():
    house = House({"gpu": 6, "cpu": 6, "third": 3}, budget=10, gated=True)
    house.hosts["gpu"].hold(WAIT)
    asked = [
        asyncio.create_task(house.manager.acquire(house.hosts[name], 0.05 if name == "gpu" else 30))
        for name in ("gpu", "cpu")
    ]
    await settle()
    assert house.states() == {"gpu": "unloaded", "cpu": "loading", "third": "unloaded"}
    house.engine("cpu").come_up()
    lease = await asked[1]
    with pytest.raises(GpuMemoryShort):
        await asked[0]
    lease.release()
    await settle()
    assert house.states()["cpu"] == "ready"  # nothing that could not be used is worth unloading it
    house.manager.begin_load(house.hosts["gpu"])
    await settle()
    assert house.states()["gpu"] == "unloaded"
    house.hosts["gpu"].hold(None)
    house.manager.expire()
    await settle()
    assert house.states()["cpu"] == "unloading"
    house.let_end("cpu")
    await settle()
    assert house.states()["gpu"] == "loading"
    house.engine("gpu").come_up()
    await settle()
    house.let_end("gpu")
    await house.manager.stop()


class Watched:
    """A guarded card of 8 GiB with two models; a third one is elsewhere."""

    def __init__(self, limits: GuardLimits | None = None) -> None:
        self.house = House({"a": 2 * GIB, "b": 3 * GIB, "cpu": 1}, budget=None)
        for name in ("a", "b"):
            host = self.house.hosts[name]
            host.spec = replace(host.spec, footprint=Footprint(gpu=host.spec.footprint.cpu))
        clock = self.house.clock
        hosts = (self.house.hosts["a"], self.house.hosts["b"])
        self.guard = CardGuard(limits or GuardLimits(), clock.now)
        card = WatchedCard(CARD, f"Fake ({CARD})", self.guard, hosts)
        self.all = GpuGuard((card,), clock, self.house.manager.expire)

    def see(self, free: int, seconds: int = 1, own: int | None = None) -> GuardState:
        for _ in range(seconds):
            self.house.clock.advance(1)
            self.all.observe({CARD: Sample(self.house.clock.now, 8 * GIB, free, own)})
        return self.guard.state

    async def load(self, name: str) -> None:
        self.house.manager.begin_load(self.house.hosts[name])
        await settle()

    async def come_up(self, name: str) -> None:
        self.house.engine(name).come_up()
        await settle()

    async def stop(self) -> None:
        for name, engines in self.house.engines.items():
            for engine in engines:
                engine.loaded.set()
                self.house.let_end(name)
                assert engine.held is not None
        await self.house.manager.stop()


async def test_the_planned_share_follows_what_is_loaded_and_unloaded():
    card = Watched()
    shares = []

    def note(free: int, own: int) -> None:
        card.see(free, own=own)
        shares.append((card.guard.share, card.guard.headroom))

    note(8 * GIB, 0)
    await card.load("a")
    note(7 * GIB, 1 * GIB)
    await card.come_up("a")
    note(6 * GIB, 2 * GIB)
    await card.load("b")
    note(6 * GIB, 2 * GIB)
    await card.come_up("b")
    note(3 * GIB, 5 * GIB)
    card.house.manager.begin_unload(card.house.hosts["a"])
    note(3 * GIB, 5 * GIB)
    card.house.let_end("a")
    await settle()
    note(5 * GIB, 3 * GIB)
    assert shares == [
        (Share(), 8 * GIB),
        (Share(coming=2 * GIB), 6 * GIB),
        (Share(2 * GIB, loads=1), 6 * GIB),
        (Share(2 * GIB, coming=3 * GIB, loads=1), 3 * GIB),
        (Share(5 * GIB, loads=2), 3 * GIB),
        (Share(5 * GIB, loads=2), 3 * GIB),  # what is being unloaded counts until it is gone
        (Share(3 * GIB, loads=2), 5 * GIB),
    ]
    await card.stop()


async def test_only_the_cards_own_models_are_held_and_a_load_waits_for_memory():
    card = Watched()
    assert card.see(100 * MIB) is GuardState.HOLDING
    assert [host.lane.held is not None for host in card.house.hosts.values()] == [True, True, False]
    await card.load("a")
    await card.load("cpu")
    assert card.house.loading() == ["cpu"]
    assert card.all.reason(card.house.hosts["a"]) is None  # newcomers may wait
    card.see(100 * MIB, 10)
    told = card.all.reason(card.house.hosts["a"])
    assert told is not None
    assert "100 of 8192 MiB are free" in told.message
    assert told.retry_after == 10.0
    assert card.all.reason(card.house.hosts["cpu"]) is None
    card.see(1 * GIB, 6)
    await settle()
    assert card.house.loading() == ["cpu"]  # one at a time
    await card.come_up("cpu")
    assert card.house.loading() == ["a"]
    await card.stop()


async def test_who_waits_for_a_load_need_not_wait_for_somebody_elses_once_there_is_memory():
    card = Watched()
    card.see(100 * MIB)
    await card.load("a")
    assert card.house.loading() == []
    card.see(1 * GIB, 6)
    await settle()
    assert card.house.loading() == ["a"]
    await card.stop()


async def test_a_load_that_is_under_way_goes_on_and_its_engine_is_held_until_there_is_memory():
    card = Watched()
    await card.load("a")
    card.see(100 * MIB)
    assert card.house.engine("a").held_back
    await card.come_up("a")
    assert card.house.states()["a"] == "ready"
    card.see(1 * GIB, 6)
    assert not card.house.engine("a").held_back
    await card.stop()


async def test_a_card_that_is_lost_lets_go_and_says_why():
    card = Watched()
    card.see(100 * MIB, 12)
    card.all.observe({CARD: "GPU is lost"})
    for _ in range(5):
        card.house.clock.advance(1)
        card.all.tick()
    assert card.guard.state is GuardState.BLIND
    assert card.house.hosts["a"].lane.held is None
    assert "cannot be read (GPU is lost); nothing is held back" in card.all.message()
    assert card.see(1 * GIB) is GuardState.OPEN
    assert card.guard.transitions[GuardState.BLIND] == 1


async def test_a_rule_that_the_models_themselves_break_is_named():
    card = Watched(GuardLimits(rule="used"))
    await card.load("b")
    await card.come_up("b")
    assert card.see(200 * MIB, own=3 * GIB) is GuardState.HOLDING
    assert "themselves" not in card.all.message()  # others have it
    host = card.house.hosts["b"]
    host.spec = replace(host.spec, footprint=Footprint(gpu=8 * GIB - 300 * MIB))
    card.see(200 * MIB, own=8 * GIB - 300 * MIB)
    told = "The models themselves take 7892 MiB by plan, more than gateway.gpu_guard.used: nothing"
    assert told in card.all.message()
    await card.stop()


async def test_a_process_that_stood_still_itself_has_not_lost_the_card():
    card = Watched()
    card.see(100 * MIB)
    card.house.clock.advance(30)  # frozen, or a callback that took so long
    card.all.tick()
    assert card.house.hosts["a"].lane.held is not None
    for _ in range(5):
        card.house.clock.advance(1)
        card.all.tick()
    assert card.guard.state is GuardState.BLIND


async def test_a_guard_that_looks_seldom_does_not_stand_still():
    card = Watched()
    assert card.all.beat().limit == 60.0
    card.guard.limits = replace(card.guard.limits, silence=600.0)
    assert card.all.beat().limit == 600.0


async def test_one_who_waited_too_long_in_a_hold_is_told_of_memory_not_of_slots():
    stack = Stack(engine=FakeEngine(manual=True), gpu=GuardLimits(), connect_timeout=0.05)
    host = stack.hosts.hosts[0]
    host.hold(Hold(short, shut=False))
    generation = await stack.service.open(GenerationSpec("id", MODEL, (TextPrompt("hello"),)))
    with pytest.raises(GpuMemoryShort):
        await generation.first_events(30)
    generation.close()
    assert stack.engine.requests == []
    assert stack.admission.counters["gpu_memory"] == 1
    stack.service.shutdown()


async def test_silence_of_a_held_engine_cuts_nobody():
    stack = Stack(engine=FakeEngine(manual=True), read_timeout=0.05)
    generation = await stack.service.open(GenerationSpec("id", MODEL, (TextPrompt("hello"),), n=2))
    engine = stack.engine
    engine.begin(engine.streams[0])
    stack.hosts.hosts[0].hold(Hold(short, shut=False))
    engine.finish(engine.streams[0])
    seen = generation.events(0.1)
    for _ in range(3):  # the second choice waits, far beyond the engine's longest silence
        await anext(seen)
    stack.hosts.hosts[0].hold(None)
    engine.begin(engine.streams[1])
    engine.finish(engine.streams[1])
    async for _ in seen:
        pass
    assert generation.complete
    generation.close()
    stack.service.shutdown()


@pytest.mark.parametrize("ends", [True, False])
async def test_who_is_held_when_the_server_ends_is_told_so(ends):
    limits = make_limits()
    engine = InProcessEngine(lambda _: ScriptedBackend(limits), limits, SystemClock())
    engine.start()
    await engine.wait_loaded()
    stack = Stack(engine=FakeEngine(slots=limits.slots, n_ctx=limits.n_ctx))
    host = stack.hosts.hosts[0]
    host.engine = engine
    host.hold(WAIT)
    waiting = await stack.service.open(GenerationSpec("id", MODEL, (TextPrompt("hello"),)))
    if ends:
        await stack.hosts.stop()
    else:
        stack.hosts.abandon()
    with pytest.raises(Draining):
        await waiting.first_events(5)
    waiting.close()
    await engine.stop()
    stack.service.shutdown()
