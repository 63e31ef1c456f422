"""The asyncio side with a real engine thread over the scripted backend."""

import asyncio
import functools
import threading
from collections.abc import Callable

import pytest

from server.core.clock import SystemClock
from server.core.errors import Draining, EngineDead, ModelFileError, ModelLoading
from server.core.events import Delta, Failed, Finished, FinishReason, Started
from server.engine.inprocess import InProcessEngine, TokenStream
from server.engine.interface import Backend, EngineState
from server.engine.plan import DecodeCode, StepPlan, StepResult
from tests.factories import ScriptedBackend, make_limits, make_request

pytestmark = pytest.mark.anyio


class GatedBackend(ScriptedBackend):
    """Decodes only when allowed, so that a test decides what happens during a step."""

    def __init__(self, *args, **fields):
        super().__init__(*args, **fields)
        self.allowed = threading.Semaphore(0)
        self.decoding = threading.Event()

    def decode(self, plan: StepPlan) -> StepResult:
        self.decoding.set()
        assert self.allowed.acquire(timeout=30)
        return super().decode(plan)


def make_engine(backend: ScriptedBackend | None = None, load=None) -> InProcessEngine:
    limits = make_limits()
    backend = backend or ScriptedBackend(limits)

    def default_load(_progress: Callable[[float], None]) -> Backend:
        return backend

    return InProcessEngine(load or default_load, limits, SystemClock())


async def ready(engine: InProcessEngine) -> None:
    async with asyncio.timeout(30):
        await engine.wait_loaded()


async def collect(stream: TokenStream):
    events = []
    async with asyncio.timeout(30):
        while batch := await stream.next_events():
            events += batch
    return events


async def test_streams_side_by_side_end_once_and_wake_the_loop_at_most_once_per_step():
    engine = make_engine()
    engine.start()
    await ready(engine)
    requests = [make_request(f"request {index}", 12) for index in range(5)]
    results = await asyncio.gather(*(collect(engine.submit(request)) for request in requests))
    for events in results:
        assert isinstance(events[-1], Finished)
        assert sum(isinstance(event, Finished | Failed) for event in events) == 1
        assert sum(len(event.token_ids) for event in events if isinstance(event, Delta)) == 12
    status = engine.status()
    assert 0 < status.counters["wakeups"] <= status.counters["steps"] + 1
    await engine.stop()


async def test_starts_and_ends_are_told_whether_somebody_reads_or_not():
    backend = GatedBackend(make_limits())
    engine = make_engine(backend)
    engine.start()
    await ready(engine)
    told: list[tuple[int, type]] = []

    def note(number, event):
        told.append((number, type(event)))

    streams = [
        engine.submit(make_request("hello", 9), functools.partial(note, i)) for i in range(4)
    ]
    backend.allowed.release(100)
    await collect(streams[3])
    assert sorted(told, key=lambda one: one[0]) == [
        (i, kind) for i in range(4) for kind in (Started, Finished)
    ]
    assert engine.status().waiting == 0
    await engine.stop()


async def test_nobody_comes_in_while_an_abandoned_engine_ends_its_streams():
    backend = GatedBackend(make_limits())
    engine = make_engine(backend)
    engine.start()
    await ready(engine)
    refused = []

    def try_again(event):
        if isinstance(event, Failed):
            with pytest.raises(Draining):
                engine.submit(make_request("next", 4))
            refused.append(event)

    streams = [engine.submit(make_request("hello", 9), try_again) for _ in range(2)]
    await asyncio.to_thread(backend.decoding.wait, 30)
    engine.abandon()
    assert len(refused) == 2
    for stream in streams:
        assert isinstance((await collect(stream))[-1], Failed)
    backend.allowed.release(100)
    await engine.stop()


async def test_abort_during_a_step_frees_the_slot_with_the_next():
    backend = GatedBackend(make_limits())
    engine = make_engine(backend)
    engine.start()
    await ready(engine)
    stream = engine.submit(make_request("p" * 50, 10))
    await asyncio.to_thread(backend.decoding.wait, 30)
    stream.abort()
    stream.abort()
    backend.allowed.release(1)
    events = await collect(stream)
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.ABORTED
    assert len(backend.plans) == 1
    assert not any(view.running for view in engine.slot_views())
    stream.abort()
    await engine.stop()


async def test_while_loading_requests_are_refused_with_progress():
    may_load, reported = threading.Event(), threading.Event()

    def load(progress):
        progress(0.4)
        reported.set()
        assert may_load.wait(30)
        return ScriptedBackend(make_limits())

    engine = make_engine(load=load)
    engine.start()
    await asyncio.to_thread(reported.wait, 30)
    with pytest.raises(ModelLoading, match="40% done") as caught:
        engine.submit(make_request())
    assert caught.value.retry_after is not None
    assert engine.slot_views() == []
    may_load.set()
    await ready(engine)
    assert len(engine.slot_views()) == 2
    await engine.stop()


async def test_stopping_ends_a_load_at_its_next_sign_of_progress():
    loading = threading.Event()

    def load(progress):
        for _ in range(3000):
            loading.set()
            progress(0.1)
            threading.Event().wait(0.01)
        return ScriptedBackend(make_limits())

    engine = make_engine(load=load)
    engine.start()
    await asyncio.to_thread(loading.wait, 30)
    async with asyncio.timeout(10):
        await engine.stop()
        assert await engine.wait_ended() is None
    assert engine.status().state is EngineState.STOPPED
    with pytest.raises(Draining):
        engine.submit(make_request())


async def test_a_model_that_does_not_load_is_told_to_everyone():
    def load(_progress):
        raise ModelFileError("truncated: download it again")

    engine = make_engine(load=load)
    engine.start()
    async with asyncio.timeout(30):
        error = await engine.wait_ended()
    assert isinstance(error, ModelFileError)
    assert engine.status().state is EngineState.DEAD
    with pytest.raises(EngineDead, match="download it again"):
        engine.submit(make_request())


async def test_when_the_engine_dies_every_reader_gets_the_cause():
    codes = {3: DecodeCode.FAILED, 4: DecodeCode.FAILED}
    engine = make_engine(ScriptedBackend(make_limits(), codes=codes))
    engine.start()
    await ready(engine)
    streams = [engine.submit(make_request("hello", 30)) for _ in range(4)]
    for events in await asyncio.gather(*map(collect, streams)):
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, EngineDead)
        assert "llama_decode failed twice" in events[-1].error.message
    with pytest.raises(EngineDead, match="llama_decode failed twice"):
        _ = engine.model


async def test_stopping_ends_every_stream():
    backend = GatedBackend(make_limits())
    engine = make_engine(backend)
    engine.start()
    await ready(engine)
    streams = [engine.submit(make_request("hello", 30)) for _ in range(3)]
    await asyncio.to_thread(backend.decoding.wait, 30)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    backend.allowed.release()
    await stopping
    for stream in streams:
        events = await collect(stream)
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, Draining)
    assert backend.closed
    with pytest.raises(Draining):
        engine.submit(make_request())


async def test_streams_end_even_when_the_engine_does_not():
    backend = GatedBackend(make_limits())
    engine = make_engine(backend)
    engine.start()
    await ready(engine)
    stream = engine.submit(make_request("hello", 30))
    await asyncio.to_thread(backend.decoding.wait, 30)
    engine.abandon()
    events = await collect(stream)
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, Draining)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    assert not stopping.done()  # it is still in its step, and tells its event loop when it ends
    backend.allowed.release(100)
    async with asyncio.timeout(30):
        await stopping
    assert backend.closed
    assert await stream.next_events() == []


async def test_a_slow_reader_costs_nobody_else_anything():
    engine = make_engine()
    engine.start()
    await ready(engine)
    unread = engine.submit(make_request("slow reader", 20))
    events = await collect(engine.submit(make_request("quick reader", 20)))
    assert isinstance(events[-1], Finished)
    late = await unread.next_events()
    assert isinstance(late[-1], Finished)
    assert await unread.next_events() == []
    await engine.stop()


@pytest.mark.parametrize(("prompt", "max_tokens"), [("", 4), ("x" * 60, 5), ("x", 0)])
async def test_what_could_never_run_is_refused_at_the_door(prompt, max_tokens):
    engine = make_engine()
    engine.start()
    await ready(engine)
    with pytest.raises(ValueError, match="cannot run with n_ctx 64"):
        engine.submit(make_request(prompt, max_tokens))
    assert engine.status().waiting == 0
    await engine.stop()
