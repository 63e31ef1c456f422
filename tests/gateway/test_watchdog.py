"""Who stands still is named, and nobody waits for it for longer than a stall takes to be seen."""

from __future__ import annotations

import contextlib
import os
import sqlite3

import pytest

from server.assembly.pulse import Pulse
from server.core.beat import Beat, Jobs
from server.core.errors import EngineStalled
from server.engine.interface import EngineState
from server.gateway.gpu_guard import CardGuard, GuardLimits
from server.gateway.gpu_shedding import GpuGuard, WatchedCard
from server.gateway.health import Health, HealthLimits
from server.gateway.hosts import HostManager
from server.gateway.line import Line, LineLimits
from server.gateway.memory import Budget
from server.gateway.spec import GenerationSpec, TextPrompt
from server.gateway.watchdog import Watchdog
from server.settings import ServerSettings, Settings
from server.store.connection import open_database
from server.supervisor.page import Page, shared_file
from tests.fakes import FakeClock, FakeEngine
from tests.serving import CARD, MODEL, Stack, adopted


def test_standing_still_takes_work_and_time():
    assert Beat(100.0, has_work=True, limit=5.0).still(105.0) == 0
    assert Beat(100.0, has_work=True, limit=5.0).still(105.5) == 5.5
    assert Beat(100.0, has_work=False, limit=5.0).still(900.0) == 0


def test_jobs_that_only_come_are_no_progress():
    clock = FakeClock()
    jobs = Jobs(5.0, clock)
    clock.advance(100)
    with jobs.job():
        assert jobs.beat().still(clock.now) == 0
        clock.advance(4)
        with jobs.job():
            clock.advance(2)
            assert jobs.beat().still(clock.now) == 6
        assert jobs.beat().still(clock.now) == 0
        clock.advance(5.5)
        assert jobs.beat().still(clock.now) == 5.5
    clock.advance(100)
    assert jobs.beat().still(clock.now) == 0


def test_a_job_that_fails_has_ended():
    clock = FakeClock()
    jobs = Jobs(5.0, clock)
    with pytest.raises(sqlite3.OperationalError), jobs.job():
        raise sqlite3.OperationalError("disk full")
    clock.advance(100)
    assert not jobs.beat().has_work


def test_the_store_tells_of_its_writes(tmp_path):
    with open_database(tmp_path) as database:
        before = database.writes.beat()
        with database.transaction():
            assert database.writes.beat().has_work
        after = database.writes.beat()
    assert not after.has_work
    assert after.last_progress >= before.last_progress


@pytest.fixture
def house():
    clock, engine = FakeClock(), FakeEngine()
    engine.last_step = clock.now
    line = Line(LineLimits(1), clock)
    host = adopted(engine, line)
    hosts = HostManager([host], Budget(), clock)
    guard = GpuGuard((), clock, hosts.expire, "there is no GPU")
    health = Health(hosts, host, line, guard, HealthLimits(30.0), clock)
    return health, engine, clock


def test_health_names_the_part_that_stands_still(house):
    health, engine, clock = house
    writer = Jobs(60.0, clock)
    health.watchdog.watch("the store's writer", writer.beat)
    health.watchdog.watch("the GPU guard", lambda: Beat(clock.now, has_work=True, limit=60.0))
    with writer.job():
        clock.advance(60)
        assert health.live().ok
        clock.advance(1)
        verdict = health.live()
        assert (verdict.ok, verdict.status) == (False, "stalled")
        assert verdict.message == "The store's writer has work but has not got on for 61 s."
        assert not health.ready().ok
        engine.state, engine.dead_reason = EngineState.DEAD, "The loop raised."
        assert health.live().message.startswith("The loop raised. The store's writer")
        engine.state = EngineState.READY
    assert health.live().ok


def test_a_guard_that_stands_still_is_told_and_is_no_reason_to_end_what_serves(house):
    health, engine, clock = house
    card = WatchedCard(CARD, "card", CardGuard(GuardLimits(), clock.now), ())
    guard = GpuGuard((card,), clock, health._hosts.expire)
    health = Health(health._hosts, health._default, health._admission, guard, health.limits, clock)
    clock.advance(61)
    descriptor = shared_file("page", Page.SIZE)
    with contextlib.closing(Page(descriptor)) as page:
        os.close(descriptor)
        pulse = Pulse(page, health, health._default)
        pulse.begin()
        assert health.live().message.startswith("The GPU guard has work but has not got on for")
        assert health.ready().ok
        assert page.fault == ""  # what the supervisor goes by
        engine.has_work = True
        clock.advance(31)
        pulse._beat()
        assert page.fault.startswith("The engine has work but has not finished a step")
        assert "GPU guard" not in page.fault
        assert "GPU guard" in health.live().message


def test_what_one_serves_with_is_told_for_the_time_without_a_worker(house):
    health, _, _ = house
    descriptor = shared_file("page", Page.SIZE)
    with contextlib.closing(Page(descriptor)) as page:
        os.close(descriptor)
        kept: list[bytes] = []
        pulse = Pulse(page, health, health._default, kept.append)
        pulse.begin()
        pulse.reloaded(settings("https://too-early.test"), "")
        pulse.ready(settings("https://a.test", "https://b.test"))
        assert page.origins == "https://a.test https://b.test"
        pulse.reloaded(settings("https://c.test"), "")
        page.renew({}, 0)
        assert page.origins == "https://c.test"
        assert len(kept) == 2


def settings(*origins: str) -> Settings:
    return Settings(server=ServerSettings(cors_origins=origins))


def test_nobody_is_watched_at_first():
    assert Watchdog(FakeClock()).faults() == {}


# Streams of an engine that stands still


@pytest.fixture
def stack():
    made = Stack(engine=FakeEngine(manual=True), stall_after=0.1)
    yield made
    made.service.shutdown()
    assert made.admission.outstanding == 0


def spec(**fields):
    return GenerationSpec("id", MODEL, (TextPrompt("hello"),), **fields)


async def events(generation):
    try:
        return [event async for batch in generation.events() for _, event in batch]
    finally:
        generation.close()


@pytest.mark.anyio
@pytest.mark.parametrize("phase", ["waiting", "running", "several choices"])
async def test_whoever_waits_for_a_stalled_engine_is_told(stack, phase):
    generation = await stack.service.open(spec(n=2 if phase == "several choices" else 1))
    stream = await stack.engine.submitted()
    if phase != "waiting":
        stack.engine.begin(stream)
        stack.engine.say(stream, "so far")
    stack.engine.last_step, stack.engine.has_work = stack.clock.monotonic(), True
    with pytest.raises(EngineStalled, match="has not finished a step"):
        await events(generation)
    assert stream.aborted


@pytest.mark.anyio
async def test_new_requests_are_refused_while_it_stands_still_and_taken_again_after(stack):
    stack.engine.last_step, stack.engine.has_work = stack.clock.monotonic() - 1, True
    with pytest.raises(EngineStalled):
        await stack.service.open(spec())
    assert not stack.engine.requests
    stack.engine.has_work = False
    generation = await stack.service.open(spec())
    generation.close()


@pytest.mark.anyio
async def test_steps_for_others_are_progress(stack):
    """A request that waits behind long ones is not ended while the engine gets on."""
    generation = await stack.service.open(spec())
    stream = await stack.engine.submitted()
    stack.engine.last_step, stack.engine.has_work = stack.clock.monotonic(), True
    looks = 0
    whole = stack.engine.status

    def status():
        nonlocal looks
        looks += 1
        stack.engine.last_step = stack.clock.monotonic()
        if looks == 5:
            stack.engine.begin(stream)
            stack.engine.finish(stream)
        return whole()

    stack.engine.status = status
    assert len(await events(generation)) == 2
    assert looks == 5
