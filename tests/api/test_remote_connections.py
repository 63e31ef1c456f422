"""How connections to remotes are kept, found stale, and looked after."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from server.core.errors import Unavailable
from server.gateway.remote.model import Remote, RemoteLimits
from server.gateway.remote.watch import RemoteWatch
from server.gateway.spec import ChatPrompt, Forward, GenerationSpec
from tests.api.test_remote import HELLO, error_of, far, house, lines_of, post, route
from tests.remotes import Exchange, FakeRemote, distant
from tests.serving import MODEL

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def listening(talk):
    """Serve connections by `talk(reader, writer, number)`; yields the base URL."""
    count = 0
    ended = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        ended.append(asyncio.current_task())
        try:
            with contextlib.suppress(asyncio.IncompleteReadError):
                await talk(reader, writer, count)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if b"content-length" in line)
    await reader.readexactly(int(length.partition(b":")[2]))


SAID = (
    b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def raw_house(talk, **limits):
    async with listening(talk) as url, house() as stack:
        made = {"far": distant(stack, "far", url, stack.still, **limits)}
        route(stack, made)
        try:
            yield stack
        finally:
            await made["far"].remote.close()


async def test_one_connection_carries_streams_one_after_the_other():
    peers = []

    async def talk(reader, writer, number):
        peers.append(number)
        while not reader.at_eof():
            await read_request(reader)
            writer.write(HEAD + chunked(SAID))
            await writer.drain()
            writer.write(b"0\r\n\r\n")

    async with raw_house(talk) as stack:
        for _ in range(3):
            assert (await lines_of(stack))[-1] == "data: [DONE]"
    assert peers == [1]


async def test_a_remote_that_does_not_end_after_its_end_delays_nobody():
    async def talk(reader, writer, number):
        await read_request(reader)
        writer.write(HEAD + chunked(SAID))
        await reader.read()  # until the other side closes it

    async with raw_house(talk, read_timeout=3600.0) as stack:
        for _ in range(2):
            assert (await lines_of(stack))[-1] == "data: [DONE]"
        assert far(stack).requests == {"ok": 2}


async def test_a_connection_that_was_closed_while_it_was_idle_costs_no_request():
    peers = []

    async def talk(reader, writer, number):
        await read_request(reader)
        peers.append(number)
        writer.write(HEAD + chunked(SAID) + b"0\r\n\r\n")
        if number == 1:
            await read_request(reader)  # and closes it without a word
            peers.append(-number)
        else:
            await reader.read()

    async with raw_house(talk) as stack:
        await lines_of(stack)
        assert (await lines_of(stack))[-1] == "data: [DONE]"
        assert far(stack).requests == {"ok": 2}
    assert peers == [1, -1, 2]


async def test_a_fresh_connection_that_is_closed_is_a_failure_and_asked_once():
    peers = []

    async def talk(reader, writer, number):
        await read_request(reader)
        peers.append(number)

    async with raw_house(talk) as stack:
        assert error_of(await post(stack)) == (502, "remote_failed")
    assert peers == [1]


async def test_an_answer_that_is_cut_within_its_chunk_is_an_error():
    async def talk(reader, writer, number):
        await read_request(reader)
        said = SAID.partition(b"data: [DONE]")[0].replace(b'"stop"', b"null")
        writer.write(HEAD + chunked(said) + b"ff\r\ndata: {")
        await writer.drain()

    async with raw_house(talk) as stack:
        lines = await lines_of(stack)
    assert "hi" in "".join(lines)
    assert "remote_failed" in lines[-1]


async def test_a_remote_that_hangs_keeps_no_other_from_being_looked_at():
    async def hangs(exchange: Exchange) -> None:
        await exchange.gone()

    bad, good = FakeRemote(hangs), FakeRemote()
    async with house(bad, good, read_timeout=3600.0) as stack:
        watch = RemoteWatch(stack.service.router, stack.admission, stack.still)
        async with asyncio.timeout(10):
            for _ in range(3):
                await (await watch.look())[1]
                stack.still.advance(30)
        assert len(good.exchanges) == 3
        assert len(bad.exchanges) == 1, "one look at a time"
        await watch.close()


async def test_whoever_is_ended_before_it_began_is_told():
    async with house(FakeRemote()) as stack:
        remote = far(stack)
        spawn = remote.spawn

        def ended(work):
            task = spawn(work)
            task.cancel()
            return task

        remote.spawn = ended
        answer = await post(stack, headers={"x-request-deadline-ms": "3000"})
    assert error_of(answer) == (503, "draining")


async def test_a_remote_that_was_let_go_meanwhile_is_passed_over():
    async with house(FakeRemote(), FakeRemote()) as stack:
        course = stack.fallback.course(_spec(MODEL))
        stack.kill(MODEL)
        await far(stack).close()
        generation = await course.begun()
        assert generation.model == "farther"
        generation.close()


def _spec(model: str) -> GenerationSpec:
    forward = Forward("chat/completions", lambda: {"messages": HELLO})
    return GenerationSpec("id", model, (ChatPrompt(HELLO),), forward=forward)


async def test_the_pool_is_as_large_as_the_settings_say():
    async with house(FakeRemote()) as stack:
        defaults = RemoteLimits("http://h/v1", "m")
        made = Remote("x", defaults, far(stack).lane, stack.still)
        transport: Any = made._client._transport
        pool = transport._pool
        assert (pool._max_connections, pool._max_keepalive_connections) == (201, 100)
        assert pool._keepalive_expiry >= 30, "or nothing is kept from one request to the next"
        await made.close()


async def test_the_log_says_why_a_remote_was_passed_over(caplog):
    caplog.set_level(logging.INFO)

    async def fail(exchange: Exchange) -> None:
        await exchange.answer(500, {})

    async with house(FakeRemote(fail), FakeRemote()) as stack:
        stack.kill(MODEL)
        assert (await post(stack, model=MODEL)).json()["model"] == "farther"
    assert "The remote 'far' answers with status 500." in caplog.messages


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_drains_asks_nobody(stream):
    remote = FakeRemote()
    async with house(remote) as stack:
        course = stack.fallback.course(_spec(MODEL))
        stack.kill(MODEL)
        stack.admission.drain()
        with pytest.raises(Unavailable) as caught:
            await course.begun()
        answer = await post(stack, model=MODEL, stream=stream)
    assert caught.value.code in ("draining", "engine_dead")
    assert error_of(answer) == (503, "draining")
    assert not remote.exchanges
