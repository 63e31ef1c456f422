"""An engine that is told to hold back what waits: what runs goes on, what waits keeps its place."""

from __future__ import annotations

import asyncio

import pytest

from server.core.clock import SystemClock
from server.core.errors import QueueTimeout
from server.core.events import Failed, Finished, Started
from server.engine.inprocess import InProcessEngine
from tests.factories import LoopHarness, ScriptedBackend, make_limits, make_request


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_what_runs_goes_on_and_what_waits_waits():
    harness = LoopHarness()
    running = harness.submit(make_request("one", 20))
    harness.step(3)
    harness.loop.hold(held=True)
    waiting = harness.submit(make_request("two", 5))
    harness.run()
    assert isinstance(harness.events[running][-1], Finished)
    assert waiting not in harness.events
    assert not harness.loop.has_work  # it stands still, and that is no fault
    harness.loop.hold(held=False)
    harness.run()
    assert isinstance(harness.events[waiting][-1], Finished)


def test_a_prompt_that_is_half_computed_goes_on():
    harness = LoopHarness()
    running = harness.submit(make_request("p" * 40, 5))
    harness.step()
    harness.loop.hold(held=True)
    (sequence,) = harness.scheduler.running
    assert 0 < sequence.computed < 40
    harness.run()
    assert isinstance(harness.events[running][-1], Finished)


def test_standing_still_counts_from_the_end_of_the_hold():
    harness = LoopHarness()
    harness.loop.hold(held=True)
    harness.submit(make_request("one", 5))
    harness.step()
    harness.clock.now += 3600
    harness.loop.hold(held=False)
    assert harness.loop.last_progress == harness.clock.now


def test_an_abort_in_a_hold_ends_what_waits():
    harness = LoopHarness()
    harness.loop.hold(held=True)
    waiting = harness.submit(make_request("one", 5))
    harness.step()
    harness.loop.abort(waiting)
    harness.step()
    assert isinstance(harness.events[waiting][-1], Finished)
    assert not harness.scheduler.waiting


@pytest.mark.anyio
async def test_who_waits_for_too_long_in_a_hold_is_told_although_no_step_is_made():
    limits, clock = make_limits(), SystemClock()
    engine = InProcessEngine(lambda _: ScriptedBackend(limits), limits, clock)
    engine.start()
    async with asyncio.timeout(30):
        await engine.wait_loaded()
        engine.hold(held=True)
        late = engine.submit(make_request("one", 5, deadline=clock.monotonic() + 0.05))
        patient = engine.submit(make_request("two", 5))
        (end,) = await late.next_events()
        assert isinstance(end, Failed)
        assert isinstance(end.error, QueueTimeout)
        status = engine.status()
        assert (status.held, status.has_work, status.waiting) == (True, False, 1)
        engine.hold(held=False)
        assert isinstance((await patient.next_events())[0], Started)
        await engine.stop()
