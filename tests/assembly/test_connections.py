"""What connections may do before a request is there, over a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from server.assembly.connections import ConnectionLimits
from tests.raw_http import HEALTH, answer, connected
from tests.serving import Stack, serve

pytestmark = pytest.mark.anyio


def limited(**limits) -> Stack:
    return Stack(connections=ConnectionLimits(**limits))


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx-slow: ", b"\r\n\r\n"])
async def test_headers_that_do_not_come_end_the_connection(sent):
    async with serve(limited(head_seconds=0.1)) as stack, connected(stack) as (reader, writer):
        writer.write(sent)
        status, headers, error = await answer(reader)
        assert (status, error["code"]) == (408, "client_stalled")
        assert set(error) == {"message", "type", "param", "code"}
        assert headers["connection"] == "close"
        assert await reader.read() == b""


async def test_headers_byte_by_byte_end_too():
    async with serve(limited(head_seconds=0.2)) as stack, connected(stack) as (reader, writer):
        told = asyncio.create_task(answer(reader))
        writer.write(b"GET / HTTP/1.1\r\nx-slow: ")
        while not told.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        assert (await told)[0] == 408


async def test_a_kept_connection_has_the_same_time_for_each_head():
    async with serve(limited(head_seconds=0.2)) as stack, connected(stack) as (reader, writer):
        for _ in range(3):
            writer.write(HEALTH)
            assert (await answer(reader))[0] == 200
        writer.write(HEALTH[:10])
        assert (await answer(reader))[0] == 408


async def test_a_long_answer_is_no_late_header():
    stack = limited(head_seconds=0.1)
    stack.engine.manual = True
    async with serve(stack), connected(stack) as (reader, writer):
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        stream = await stack.engine.submitted()
        await asyncio.sleep(0.3)
        stack.engine.begin(stream)
        stack.engine.finish(stream)
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize("complete", [True, False])
async def test_large_headers_are_431(complete):
    async with serve(limited(head_bytes=2000)) as stack, connected(stack) as (reader, writer):
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n")
        for number in range(10):
            writer.write(b"x-%d: %b\r\n" % (number, b"y" * 400))
            await writer.drain()
            await asyncio.sleep(0.01)
        if complete:
            writer.write(b"\r\n")
        status, _, error = await answer(reader)
        assert (status, error["code"]) == (431, "headers_too_large")


async def test_a_long_path_is_414():
    async with serve(limited()) as stack, connected(stack) as (reader, writer):
        writer.write(b"GET /%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"x" * 9000))
        status, _, error = await answer(reader)
        assert (status, error["code"]) == (414, "uri_too_long")


async def test_a_connection_too_many_is_told_to_come_back():
    async with serve(limited(connections=2)) as stack, contextlib.AsyncExitStack() as held:
        for _ in range(2):
            reader, writer = await held.enter_async_context(connected(stack))
            writer.write(HEALTH)
            assert (await answer(reader))[0] == 200
        async with connected(stack) as (reader, writer):
            writer.write(HEALTH)
            status, headers, error = await answer(reader)
            assert (status, error["code"]) == (503, "too_many_connections")
            assert int(headers["retry-after"]) >= 1
            assert await reader.read() == b""
        await held.aclose()
        async with connected(stack) as (reader, writer):
            writer.write(HEALTH)
            assert (await answer(reader))[0] == 200


async def test_a_body_that_was_refused_is_not_read_for_ever():
    stack = Stack(connections=ConnectionLimits(spare_bytes=100_000)).with_api(max_body=1000)
    async with serve(stack), connected(stack) as (reader, writer):
        writer.write(
            b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000000\r\n\r\n"
        )
        assert (await answer(reader))[0] == 413
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 10_000_000:
                writer.write(b"x" * 50_000)
                await writer.drain()
                await asyncio.sleep(0)
                sent += 50_000
        assert sent < 10_000_000


async def test_what_is_no_http_is_a_400_in_the_usual_form():
    async with serve(limited()) as stack, connected(stack) as (reader, writer):
        writer.write(b"what is this?\r\n\r\n")
        status, _, error = await answer(reader)
        assert (status, error["code"]) == (400, "invalid_request")
