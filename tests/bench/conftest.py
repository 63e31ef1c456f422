"""Fixtures of the benchmark's tests: what servers send, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Sequence

import pytest

from server.bench.client import Target


@pytest.fixture
def anyio_backend():
    # `onegpu bench` runs on uvloop, whose transports differ from asyncio's own.
    return "asyncio", {"use_uvloop": True}


def chunk(content: str | None = None, finish: str | None = None, **more: object) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n"


@contextlib.asynccontextmanager
async def answering(
    pieces: Sequence[bytes], *, reset: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Target, list[bytes]]]:
    """Serve `pieces` as the whole of every answer; give where, and the requests that came."""
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        asked.append(head + await reader.readexactly(length))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if reset:
            writer.transport.abort()
        else:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1], key="secret"), asked


def cut(data: bytes, size: int) -> list[bytes]:
    """`data` in pieces of `size` bytes."""
    return [data[i : i + size] for i in range(0, len(data), size)]


def chunked(data: bytes, size: int) -> bytes:
    """`data` with HTTP's chunked coding."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in cut(data, size))
    head = HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n")
    return head + framed + b"0\r\n\r\n"
