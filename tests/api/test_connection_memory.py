"""What a connection costs while nothing happens on it: memory that Python hands out, traced."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from server.api.limits import ApiLimits
from server.assembly.connections import ConnectionLimits
from tests.raw_http import HEALTH, STREAM, post
from tests.serving import Stack, serve

pytestmark = pytest.mark.anyio

BOUND = 50_000
"""Bytes."""
FIRST, COUNT = 20, 60
"""Connections that pay for what all share, and those that are counted."""


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Stack]:
    stack = Stack(
        max_queue=1000,
        api=ApiLimits(comment_every=30.0, stream_hold=0.001),
        connections=ConnectionLimits(),
        idle_timeout=60,
    )
    stack.engine.manual = True
    async with serve(stack):
        yield stack


async def asked(stack: Stack, request: bytes, until: bytes) -> socket.socket:
    """A plain socket: the client is traced, too, and shall weigh nothing."""
    loop = asyncio.get_running_loop()
    host, port = stack.url.removeprefix("http://").split(":")
    made = socket.socket()
    made.setblocking(False)
    await loop.sock_connect(made, (host, int(port)))
    await loop.sock_sendall(made, request)
    told = b""
    while until not in told:
        told += await loop.sock_recv(made, 4096)
    return made


async def bytes_each(connect: Callable[[], Awaitable[socket.socket]]) -> float:
    held = [await connect() for _ in range(FIRST)]
    tracemalloc.start()
    try:
        # Once more: what is made at first sight is made while it is traced, too.
        held += [await connect() for _ in range(FIRST)]
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        held += [await connect() for _ in range(COUNT)]
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / COUNT
    finally:
        tracemalloc.stop()
        for one in held:
            one.close()


async def test_an_idle_connection_is_small() -> None:
    async with served() as stack:
        assert 0 < await bytes_each(lambda: asked(stack, HEALTH, b"}")) < BOUND


async def test_a_stream_that_waits_in_the_line_is_small() -> None:
    async with served() as stack:
        each = await bytes_each(lambda: asked(stack, post(STREAM), b": queued"))
        assert 0 < each < BOUND
