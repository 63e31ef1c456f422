"""Requests that two readers could understand differently, and what they must not bring about."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import FakeEngine
from tests.raw_http import BODY, HEALTH, STREAM, answer, chunked, connected, post, until
from tests.serving import Stack, serve

pytestmark = pytest.mark.anyio
WHOLE = b"%x\r\n%b\r\n" % (len(BODY), BODY)
NOT_ONE_MESSAGE = {
    "length and chunks": post(b"0\r\n\r\n", b"transfer-encoding: chunked"),
    "two lengths": post(BODY, b"content-length: 3"),
    "a signed length": post(BODY).replace(b"content-length: ", b"content-length: +"),
    "a list of lengths": post(BODY).replace(b"content-length: ", b"content-length: 5, "),
    "a blank before the colon": post(BODY).replace(b"content-length:", b"content-length :"),
    "chunks last but one": chunked(WHOLE, b"0\r\n\r\n").replace(b"chunked", b"chunked, gzip"),
    "chunks twice": chunked(WHOLE, b"0\r\n\r\n").replace(b"chunked", b"chunked, chunked"),
    "another encoding": chunked(WHOLE, b"0\r\n\r\n").replace(b"chunked", b"xchunked"),
    "a folded header": post(BODY, b"x-a: 1", b" transfer-encoding: chunked"),
    "lines without CR": post(BODY).replace(b"\r\n", b"\n"),
    "a CR within a line": post(BODY, b"x-a: 1\rcontent-length: 0"),
    "a NUL": post(BODY, b"x-a: \x00"),
    "no host": post(BODY).replace(b"host: localhost\r\n", b""),
    "two hosts": post(BODY, b"host: 127.0.0.1"),
    "a chunk of no size": chunked(b"zz\r\n"),
    "a chunk beyond counting": chunked(b"ffffffffffffffffff\r\nx"),
    "chunks without CR": chunked(b"5\nhello\n0\n\n"),
    "a chunk longer than it says": chunked(b"2\r\nhello\r\n0\r\n\r\n"),
    "a proxy's method": b"CONNECT localhost:1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "another version": b"GET / HTTP/1.7\r\nhost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no ASCII": b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_ONE_MESSAGE.values(), ids=NOT_ONE_MESSAGE)
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(sent):
    async with serve(Stack()) as stack, connected(stack) as (reader, writer):
        writer.write(sent + HEALTH)
        status, headers, error = await answer(reader)
        assert (status, error["code"]) == (400, "invalid_request")
        assert headers["connection"] == "close"
        assert headers["x-request-id"]
        assert await reader.read() == b""
        assert stack.engine.requests == []


async def test_what_comes_after_the_body_is_no_header():
    """Or a client could add the headers that a proxy in front of the server adds or removes."""
    trailers = b"x-request-id: mine\r\nx-request-deadline-ms: no\r\n\r\n"
    async with serve(Stack()) as stack, connected(stack) as (reader, writer):
        writer.write(chunked(WHOLE, b"0\r\n", trailers))
        status, headers, _ = await answer(reader)
        assert status == 200
        assert headers["x-request-id"] != "mine"


@pytest.mark.parametrize("piece", [b"x: y\r\n" * 1000, b"x" * 6000])
async def test_what_comes_after_the_body_is_bounded(piece):
    async with serve(Stack()) as stack, connected(stack) as (reader, writer):
        writer.write(chunked(WHOLE, b"0\r\nx-a: "))
        answered = asyncio.create_task(answer(reader))
        sent = 0
        while not answered.done():
            assert sent < 10_000_000
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
            sent += len(piece)
        status, _, error = await answered
        assert (status, error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
async def test_a_request_that_offers_another_protocol_is_answered_in_this_one(upgrade):
    """Java's client offers HTTP/2 with every first request, also with those that have a body."""
    offer = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: " + upgrade, b"http2-settings: A")
    async with serve(Stack()) as stack, connected(stack) as (reader, writer):
        for _ in range(2):
            writer.write(post(BODY, *offer))
            status, headers, body = await answer(reader)
            assert status == 200
            assert body["choices"][0]["message"]["content"] == "Hello world!"
            assert "upgrade" not in headers
        writer.write(post(BODY, b"connection: close, upgrade", b"upgrade: h2c"))
        assert (await answer(reader))[0] == 200
        assert await reader.read() == b""


async def test_an_offer_that_comes_in_pieces_is_read_too():
    sent = post(BODY, b"connection: upgrade", b"upgrade: h2c")
    async with serve(Stack()) as stack, connected(stack) as (reader, writer):
        for start in range(0, len(sent), 7):
            writer.write(sent[start : start + 7])
            await writer.drain()
            await asyncio.sleep(0)
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize("later", [False, True])
async def test_a_client_that_goes_frees_its_slot_whatever_it_had_sent_ahead(later):
    stack = Stack(engine=FakeEngine(manual=True))
    async with serve(stack):
        async with connected(stack) as (_, writer):
            writer.write(post(STREAM) if later else post(STREAM) + HEALTH)
            stream = await stack.engine.submitted()
            if later:
                writer.write(HEALTH)
                connections = stack.server.server_state.connections
                await until(lambda: any(one.pipeline for one in connections))
            stack.engine.begin(stream)
        await stack.engine.until(lambda engine: bool(engine.aborted))
        async with asyncio.timeout(5):
            await stack.admission.drained()


async def test_requests_that_are_sent_ahead_are_answered_in_order():
    async with serve(Stack()) as stack, connected(stack) as (reader, writer):
        writer.write((HEALTH + post(BODY)) * 10)
        for _ in range(10):
            assert "status" in (await answer(reader))[2]
            assert "choices" in (await answer(reader))[2]
