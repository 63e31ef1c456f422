"""Refusals before the application: told in the usual form, counted, logged; and connections that end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket

import pytest

from server.assembly.connections import ConnectionLimits
from tests.fakes import FakeEngine
from tests.raw_http import HEALTH, STREAM, answer, connected, counted, post, until
from tests.serving import Stack, serve

pytestmark = pytest.mark.anyio


def limited(**limits) -> Stack:
    return Stack(connections=ConnectionLimits(**limits))


@pytest.mark.parametrize(
    ("limits", "sent", "status", "code", "told"),
    [
        ({"head_seconds": 0.05}, b"", 408, "client_stalled", "- - 408"),
        (
            {"head_bytes": 100},
            b"GET /a HTTP/1.1\r\nx: " + b"y" * 200,
            431,
            "headers_too_large",
            "- - 431",
        ),
        (
            {"head_bytes": 100},
            HEALTH[:-2] + b"x: %b\r\n\r\n" % (b"y" * 200),
            431,
            "headers_too_large",
            "GET '/health/live' 431",
        ),
        ({"url_bytes": 5}, HEALTH, 414, "uri_too_long", "GET '/health/live' 414"),
        ({"connections": 0}, HEALTH, 503, "too_many_connections", "GET '/health/live' 503"),
        ({}, b"what?\r\n\r\n", 400, "invalid_request", "- - 400"),
    ],
)
async def test_a_refusal_before_the_application_is_counted_and_logged(
    caplog, limits, sent, status, code, told
):
    caplog.set_level(logging.INFO, "onegpu.access")
    async with serve(limited(**limits)) as stack, connected(stack) as (reader, writer):
        writer.write(sent)
        got, headers, error = await answer(reader)
        assert (got, error["code"]) == (status, code)
        assert await reader.read() == b""
    assert counted(stack, code) == 1
    metrics = stack.metrics.render()[0].decode()
    assert f'onegpu_requests_total{{endpoint="unmatched",status="{status}"}} 1.0' in metrics
    (line,) = [record for record in caplog.records if record.name == "onegpu.access"]
    assert line.getMessage() == told
    assert line.request_id == headers["x-request-id"]
    assert line.facts["code"] == code


async def test_a_clients_own_id_is_kept_in_refusals():
    async with serve(limited(url_bytes=5)) as stack, connected(stack) as (reader, writer):
        writer.write(HEALTH[:-2] + b"x-request-id: mine\r\n\r\n")
        assert (await answer(reader))[1]["x-request-id"] == "mine"


async def test_who_was_there_first_is_served_on_when_there_are_too_many():
    async with serve(limited(connections=1)) as stack, connected(stack) as (reader, writer):
        writer.write(HEALTH)
        assert (await answer(reader))[0] == 200
        async with connected(stack) as (_, _):
            await until(lambda: len(stack.server.server_state.connections) > 1)
            writer.write(HEALTH)
            assert (await answer(reader))[0] == 200


async def test_one_too_many_that_says_nothing_is_not_kept_for_long(monkeypatch):
    monkeypatch.setattr("server.assembly.connections._SURPLUS_SECONDS", 0.05)
    async with serve(limited(connections=1)) as stack, connected(stack), connected(stack) as extra:
        status, _, error = await answer(extra[0])
        assert (status, error["code"]) == (503, "too_many_connections")


async def test_an_idle_connection_ends_with_words_that_a_late_request_can_be_told_by():
    stack = Stack(idle_timeout=1)
    async with serve(stack), connected(stack) as (reader, writer):
        writer.write(HEALTH)
        assert (await answer(reader))[0] == 200
        status, headers, error = await answer(reader)
        assert (status, error["code"]) == (408, "idle_timeout")
        assert headers["connection"] == "close"
        assert await reader.read() == b""
    assert counted(stack, "idle_timeout") == 1


def deaf() -> socket.socket:
    """A client with hardly any room for answers."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    return client


@contextlib.asynccontextmanager
async def never_reading(stack: Stack, *requests: bytes):
    """Send requests; read nothing."""
    host, port = stack.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    with contextlib.closing(deaf()) as client:
        await loop.sock_connect(client, (host, int(port)))
        for request in requests:
            await loop.sock_sendall(client, request)
        yield client


LONG = post(json.dumps({"content": "x" * 2_000_000}).encode(), path=b"/tokenize")


async def test_an_unread_answer_does_not_keep_its_connection_when_it_is_the_last():
    stack = Stack(idle_timeout=1)
    request = LONG.replace(b"host: localhost", b"host: localhost\r\nconnection: close")
    async with serve(stack), never_reading(stack, request):
        await until(lambda: stack.server.server_state.connections)
        await until(lambda: not stack.server.server_state.connections)
    assert counted(stack, "client_stalled") == 1


@pytest.mark.parametrize("second", [post(STREAM), LONG, post(b"{")], ids=["stream", "whole", "400"])
async def test_an_unread_answer_holds_up_nothing_but_the_next_one_and_not_for_long(second):
    """The next answer's first byte waits for the reader; nobody else may, nor may its place."""
    stack = Stack(engine=FakeEngine()).with_api(write_timeout=0.3)
    async with serve(stack), never_reading(stack, LONG, second):
        await until(lambda: stack.server.server_state.connections)
        await until(lambda: not stack.server.server_state.connections)
        assert stack.admission.outstanding == 0
    assert counted(stack, "client_stalled") == 1
