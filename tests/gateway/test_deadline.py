"""One timer for many waits, and the same outcomes as `asyncio.timeout` would have."""

from __future__ import annotations

import asyncio

import pytest

from server.gateway.deadline import Deadline

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_a_wait_past_its_time_is_a_timeout_and_leaves_the_task_whole():
    deadline = Deadline()
    for _ in range(2):
        with pytest.raises(TimeoutError), deadline.until(soon(0.01)):
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_waits_that_end_in_time_share_a_timer(monkeypatch):
    deadline, timers = Deadline(), []
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def counted(when, callback, *args, **kwargs):
        made = call_at(when, callback, *args, **kwargs)
        if getattr(callback, "__self__", None) is deadline:
            timers.append(made)
        return made

    monkeypatch.setattr(loop, "call_at", counted)
    for _ in range(100):
        with deadline.until(soon(60)):
            await asyncio.sleep(0)
    assert len(timers) == 1
    with deadline.until(soon(30)):  # an earlier one needs one of its own
        await asyncio.sleep(0)
    assert len(timers) == 2
    deadline.close()
    assert all(timer.cancelled() for timer in timers)


async def test_the_timer_of_an_earlier_wait_does_not_end_a_later_one():
    deadline = Deadline()
    with deadline.until(soon(0.02)):
        await asyncio.sleep(0)
    begin = soon(0)
    with pytest.raises(TimeoutError), deadline.until(soon(0.1)):
        await asyncio.Event().wait()
    assert soon(0) - begin >= 0.1


async def test_between_waits_nothing_is_cancelled():
    deadline = Deadline()
    with deadline.until(soon(0.01)):
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)
    with pytest.raises(TimeoutError), deadline.until(soon(0.01)):
        await asyncio.Event().wait()


async def test_who_is_cancelled_by_somebody_else_stays_cancelled():
    deadline, waits = Deadline(), asyncio.Event()

    async def wait():
        with deadline.until(soon(60)):
            waits.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline.close()


async def test_other_errors_pass():
    deadline = Deadline()
    with pytest.raises(KeyError), deadline.until(soon(60)):
        raise KeyError
    deadline.close()
