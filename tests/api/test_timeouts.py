"""Each timeout has its own code and its own count, and frees what was held: over a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace

import pytest

from tests.fakes import FakeEngine
from tests.raw_http import BODY, HEALTH, STREAM, answer, connected, counted, post, until
from tests.serving import Stack, serve

pytestmark = pytest.mark.anyio
CODES = {"queue_timeout", "engine_timeout", "client_stalled", "idle_timeout", "total_timeout"}
"""Of connect, read, write, idle and total."""


def manual(**limits) -> Stack:
    return replace(Stack(engine=FakeEngine(manual=True, slots=1)), **limits)


async def released(stack: Stack, code: str) -> None:
    """Everything is given back, and this alone was counted."""
    async with asyncio.timeout(5):
        await stack.admission.drained()
    await until(lambda: not stack.engine.running)
    assert stack.engine.waiting == []
    assert {one: counted(stack, one) for one in CODES} == {one: int(one == code) for one in CODES}


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_connect_the_wait_for_a_slot(body):
    stack = manual(connect_timeout=0.1)
    async with serve(stack), connected(stack) as (reader, writer):
        lane = stack.service.router.default.host.lane
        held = lane.admit(2)  # as many as the engine is given ahead
        held.price([1.0] * 2, lambda _index, _rank: None)
        writer.write(post(body))
        status, headers, error = await answer(reader)
        assert (status, error["code"]) == (503, "queue_timeout")
        assert int(headers["retry-after"]) >= 1
        held.release()
        await released(stack, "queue_timeout")


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_read_the_engines_silence_before_the_first_token(body):
    stack = manual(read_timeout=0.1)
    async with serve(stack), connected(stack) as (reader, writer):
        writer.write(post(body))
        stack.engine.begin(await stack.engine.submitted())
        status, headers, error = await answer(reader)
        assert (status, error["code"]) == (504, "engine_timeout")
        assert headers["x-should-retry"] == "false"
        await released(stack, "engine_timeout")


@pytest.mark.parametrize(
    ("limits", "code"),
    [({"read_timeout": 0.1}, "engine_timeout"), ({"total_timeout": 0.3}, "total_timeout")],
)
async def test_read_and_total_within_a_stream(limits, code):
    stack = manual(**limits)
    async with serve(stack), connected(stack) as (reader, writer):
        writer.write(post(STREAM))
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        stack.engine.say(stream, "so far")
        assert b"200 OK" in await reader.readline()
        while b'"error"' not in (line := await reader.readline()):
            assert line
        assert json.loads(line.removeprefix(b"data: "))["error"]["code"] == code
        await released(stack, code)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_total_the_whole_answer(body):
    stack = manual(total_timeout=0.1)
    async with serve(stack), connected(stack) as (reader, writer):
        writer.write(post(body))
        stack.engine.begin(await stack.engine.submitted())
        status, headers, error = await answer(reader)
        assert (status, error["code"]) == (504, "total_timeout")
        assert headers["x-should-retry"] == "false"
        await released(stack, "total_timeout")


async def test_write_a_body_that_stops_coming():
    stack = manual().with_api(write_timeout=0.1)
    async with serve(stack), connected(stack) as (reader, writer):
        writer.write(post(BODY)[:-5])
        status, _, error = await answer(reader)
        assert (status, error["code"]) == (408, "client_stalled")
        await released(stack, "client_stalled")


async def test_write_an_answer_that_nobody_reads():
    stack = manual().with_api(write_timeout=0.2)
    async with serve(stack), connected(stack, limit=1024) as (reader, writer):
        writer.write(post(STREAM))
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        while not stack.engine.aborted:
            stack.engine.say(stream, "x" * 50_000)
            await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        await released(stack, "client_stalled")


async def test_idle_between_two_requests():
    stack = manual(idle_timeout=1)
    async with serve(stack), connected(stack) as (reader, writer):
        writer.write(HEALTH)
        assert (await answer(reader))[0] == 200
        status, _, error = await answer(reader)
        assert (status, error["code"]) == (408, "idle_timeout")
        await released(stack, "idle_timeout")
