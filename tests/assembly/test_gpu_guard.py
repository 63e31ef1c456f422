"""The guard as it is put together: settings, the real pynvml over a fake driver, a real server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
from xml.etree import ElementTree as ET

import httpx
import openai
import pytest

import gpu_guard_trace
from server.api.limits import ApiLimits
from server.assembly.gpu_guard import build_guard, guard_limits, watch_cards
from server.catalog.plan import Memory
from server.core.clock import SystemClock
from server.gateway.gpu_guard import GuardLimits, GuardState, Readings, Sample
from server.gateway.gpu_shedding import GpuGuard
from server.gateway.hosts import HostManager
from server.gateway.line import Line, LineLimits
from server.gateway.memory import Budget, Footprint
from server.ops.gpu_sampler import GpuSampler, NvmlReader
from server.settings import Settings, SettingsError, load
from tests.fakes import FakeEngine
from tests.serving import CARD, MODEL, Stack, adopted, serve

pytestmark = pytest.mark.anyio

MIB = 1 << 20
GIB = 1 << 30
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
OPEN, HOLDING, SHEDDING, BLIND = GuardState
QUICK = GuardLimits(rule="used", hold=0.02, settle=0.05, silence=30.0)


class Watching:
    """A served stack whose card is read by a sampler; tests wait for what the guard makes of it."""

    def __init__(self, stack: Stack, machine) -> None:
        self.stack, self.card = stack, machine.cards[1]  # the one on the stack's bus
        self.seen: list[GuardState] = []
        self.changed = asyncio.Event()
        self.sampler = GpuSampler(NvmlReader([CARD], SystemClock()), 0.002)

    def deliver(self, readings: Readings) -> None:
        guard = self.stack.guard.cards[0].guard
        before = guard.state
        self.stack.guard.observe(readings)
        if guard.state is not before:
            self.seen.append(guard.state)
        self.changed.set()

    async def use(self, percent: float, *, until: GuardState) -> None:
        """Let others use the card up to so much, and wait for the guard's answer."""
        self.card.others = self.card.total * round(percent * 10) // 1000
        async with asyncio.timeout(30):
            while self.stack.guard.cards[0].guard.state is not until:
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def watching(stack: Stack, machine):
    async with serve(stack):
        watched = Watching(stack, machine)
        watched.sampler.start(asyncio.get_running_loop(), watched.deliver)
        try:
            yield watched
        finally:
            watched.sampler.stop()
            assert watched.sampler.thread is not None
            await asyncio.to_thread(watched.sampler.thread.join, 30)


async def test_ten_times_to_97_percent_and_back_cuts_nobody(machine):
    api = ApiLimits(comment_every=30.0, stream_hold=0.01)
    stack = Stack(engine=FakeEngine(manual=True, slots=2), api=api, gpu=QUICK)
    engine = stack.engine
    async with (
        watching(stack, machine(8 * GIB, 24 * GIB)) as watched,
        httpx.AsyncClient(base_url=stack.url, timeout=30) as client,
        client.stream("POST", CHAT, json={**BODY, "stream": True}) as answer,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as sdk,
    ):
        running = await engine.submitted()
        engine.begin(running)
        lines = answer.aiter_lines()
        for number in range(10):
            engine.say(running, f"<{number}>")
            await watched.use(97, until=SHEDDING)
            with pytest.raises(openai.InternalServerError) as refused:
                await sdk.chat.completions.create(**BODY)
            assert refused.value.status_code == 503
            assert refused.value.code == "gpu_memory"
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
            engine.say(running, f"({number})")  # what runs goes on, on a card that sheds
            await watched.use(80, until=OPEN)
        engine.finish(running)
        said = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
        text = "".join(part["choices"][0]["delta"].get("content") or "" for part in said)
        assert text == "".join(f"<{number}>({number})" for number in range(10))
        assert said[-1]["choices"][0]["finish_reason"] == "stop"
    assert watched.seen == [HOLDING, SHEDDING, OPEN] * 10
    assert stack.admission.counters["gpu_memory"] == 10
    assert engine.aborted == []


async def test_who_comes_while_it_holds_waits_and_runs_later(machine):
    limits = GuardLimits(rule="used", hold=3600, settle=0.05)
    stack = Stack(engine=FakeEngine(), gpu=limits, max_queue=1)
    async with (
        watching(stack, machine(8 * GIB, 24 * GIB)) as watched,
        httpx.AsyncClient(base_url=stack.url, timeout=30) as client,
    ):
        await watched.use(97, until=HOLDING)
        assert stack.engine.held_back
        enter, entered = stack.admission.entered, asyncio.Event()

        def count(*given) -> None:
            enter(*given)
            if stack.admission.outstanding == 5:
                entered.set()

        stack.admission.entered = count  # type: ignore[assignment, method-assign]
        waiting = [asyncio.create_task(client.post(CHAT, json=BODY)) for _ in range(5)]
        async with asyncio.timeout(30):
            await entered.wait()
        full = await client.post(CHAT, json=BODY)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "gpu_memory")
        assert stack.engine.requests == []
        ready = await client.get("/health/ready")
        assert ready.status_code == 200
        assert "requests wait. GPU memory is short" in ready.json()["message"]
        await watched.use(80, until=OPEN)
        answers = await asyncio.gather(*waiting)
        assert [answer.status_code for answer in answers] == [200] * 5


async def test_health_and_metrics_tell_of_it(machine):
    stack = Stack(gpu=QUICK)
    made = machine(8 * GIB, 24 * GIB)
    async with (
        watching(stack, made) as watched,
        httpx.AsyncClient(base_url=stack.url, timeout=30) as client,
    ):
        await watched.use(97, until=SHEDDING)
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "gpu_memory")
        assert (await client.get("/health/live")).status_code == 200
        told = (await client.get("/health")).json()["gpu_guard"]
        assert told == f"737 of 24576 MiB are free on Fake ({CARD}); 2457 MiB are needed."
        lines = (await client.get("/metrics")).text.splitlines()
        told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        free = made.cards[1].total - made.cards[1].others
        for name, value in {
            "memory_total_bytes": 24 * GIB,
            "memory_free_bytes": free,
            "memory_used_bytes": 24 * GIB - free,
            "memory_planned_bytes": 0,
            "guard_headroom_bytes": free,
            "guard_low_bytes": round(24 * GIB * (1 - 0.95)),
            "guard_high_bytes": round(24 * GIB * (1 - 0.90)),
        }.items():
            assert float(told[f'onegpu_gpu_{name}{{card="{CARD}"}}']) == value, name
        for state, now, times in (("shedding", 1, 1), ("holding", 0, 1), ("open", 0, 0)):
            labels = f'{{card="{CARD}",state="{state}"}}'
            assert f"onegpu_gpu_guard_state{labels} {now}.0" in lines
            assert f"onegpu_gpu_guard_transitions_total{labels} {times}.0" in lines
        assert "onegpu_gpu_guard_cards 1.0" in lines


async def test_a_driver_that_goes_lets_requests_in_and_one_that_comes_back_is_watched(machine):
    limits = GuardLimits(rule="used", hold=0, settle=0.02, silence=0.05)
    stack = Stack(gpu=limits)
    made = machine(8 * GIB, 24 * GIB)
    async with (
        watching(stack, made) as watched,
        httpx.AsyncClient(base_url=stack.url, timeout=30) as client,
    ):
        await watched.use(97, until=SHEDDING)
        made.lose_driver()
        await watched.use(97, until=BLIND)
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        told = (await client.get("/health")).json()["gpu_guard"]
        assert "cannot be read (Driver Not Loaded); nothing is held back" in told
        assert "memory_free_bytes{" not in (await client.get("/metrics")).text
        made.bring_driver_back()
        await watched.use(97, until=SHEDDING)
        assert (await client.post(CHAT, json=BODY)).status_code == 503


async def test_without_a_gpu_it_is_off_and_says_so(caplog):
    caplog.set_level(logging.INFO)
    guard = built(Settings(), Memory())
    assert "GPU guard: off: no model is on a GPU" in caplog.text
    assert guard.message() == "off: no model is on a GPU"
    async with asyncio.timeout(30):
        await watch_cards(guard, Settings(), SystemClock())  # nothing to do
    stack = Stack()
    async with (
        serve(stack),
        httpx.AsyncClient(base_url=stack.url, timeout=30) as client,
    ):
        assert (await client.get("/health")).json()["gpu_guard"] == "off: there is no GPU"
        assert "onegpu_gpu_guard_cards 0.0" in (await client.get("/metrics")).text


def built(settings: Settings, memory: Memory, gpu: int = 6 * GIB) -> GpuGuard:
    clock = SystemClock()
    line = Line(LineLimits(8), clock)
    hosts = [adopted(FakeEngine(), line, name) for name in ("big", "cpu")]
    object.__setattr__(hosts[0].spec, "footprint", Footprint(gpu=gpu))
    return build_guard(settings, memory, HostManager(hosts, Budget(), clock), clock)


ON_CARD = Memory(gpu_total=8 * GIB, gpu_name="RTX", gpu_bus_id=CARD)


@pytest.mark.parametrize(
    ("sections", "memory", "gpu", "why"),
    [
        ({}, Memory(), GIB, "no model is on a GPU"),
        ({}, ON_CARD, 0, "no model is on a GPU"),
        ({"gateway": {"gpu_guard": {"mode": "off"}}}, ON_CARD, GIB, "gpu_guard.mode says so"),
        ({"memory": {"reserve": 0}}, ON_CARD, GIB, "memory.reserve is 0"),
    ],
)
def test_what_turns_it_off(sections, memory, gpu, why):
    guard = built(Settings.model_validate(sections), memory, gpu)
    assert not guard.cards
    assert why in guard.message()


async def test_it_watches_the_card_that_was_planned_for_and_the_models_on_it(machine, caplog):
    caplog.set_level(logging.INFO)
    made = machine(24 * GIB, 8 * GIB)  # the first one is not ours
    made.own(1, 6 * GIB)
    settings = Settings.model_validate({"gateway": {"gpu_guard": {"interval": 0.05}}})
    guard = built(settings, ON_CARD)
    assert (
        f"GPU guard: on for RTX ({CARD}). Nothing new begins while less than 256 MiB" in caplog.text
    )
    (card,) = guard.cards
    assert [host.spec.name for host in card.hosts] == ["big"]
    arrived = asyncio.Event()
    observe = card.guard.observe

    def seen(sample: Sample, share) -> None:
        observe(sample, share)
        arrived.set()

    card.guard.observe = seen  # type: ignore[method-assign]
    watch = asyncio.create_task(watch_cards(guard, settings, SystemClock()))
    async with asyncio.timeout(30):
        await arrived.wait()
    watch.cancel()
    assert (card.guard.sample.total, card.guard.sample.own) == (8 * GIB, 6 * GIB)
    assert card.guard.share.settled == 6 * GIB
    assert card.guard.share.context == ON_CARD.cuda_context > 0


def test_limits_come_from_the_settings():
    limits = guard_limits(
        Settings.model_validate(
            {
                "memory": {"reserve": "1GiB"},
                "gateway": {
                    "gpu_guard": {"mode": "used", "used": 92, "used_resume": 85.5, "low": "100MiB"}
                },
            }
        )
    )
    assert limits == GuardLimits(
        "used", GIB, 100 * MIB, 768 * MIB, 0.92, 0.855, hold=10.0, settle=5.0, silence=5.0
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"HIGH": "600MiB"}, "must be at most memory.reserve (512MiB), which is all that a plan"),
        ({"LOW": "400MiB"}, "must be at most gateway.gpu_guard.high (384MiB); it is 400MiB"),
        ({"USED_RESUME": "96"}, "must be at most used (95); it is 96"),
        ({"USED": "100"}, "less than 100"),
        ({"MODE": "auto"}, "reserve"),
        ({"INTERVAL": "1ms"}, "0.05"),
    ],
)
def test_thresholds_that_would_hold_a_card_that_is_full_by_plan_are_refused(flags, told):
    environ = {f"ONEGPU_GATEWAY__GPU_GUARD__{name}": value for name, value in flags.items()}
    with pytest.raises(SettingsError) as refused:
        load(environ=environ)
    (problem,) = refused.value.problems
    assert problem.path[:2] == ("gateway", "gpu_guard")
    assert told in problem.message
    assert next(iter(environ)) in problem.where


@pytest.mark.parametrize(("rule", "gib"), [("used", 24), ("reserve", 8)])
def test_the_trace_that_is_drawn_has_ten_waves_and_cuts_nobody(rule, gib):
    moments = gpu_guard_trace.trace(GuardLimits(rule=rule), gib * GIB, 10)
    assert gpu_guard_trace.transitions(moments) == [HOLDING, SHEDDING, OPEN] * 10
    assert {moment.cut for moment in moments} == {0}
    assert moments[-1].finished > 100
    for before, after in itertools.pairwise(moments):
        if before.state is not OPEN and after.state is not OPEN:
            assert after.running <= before.running  # nothing begins
    picture = gpu_guard_trace.draw(moments, "title")
    assert len(ET.fromstring(picture).findall("{*}polyline")) == 5
