"""HTTP as bytes over a socket: for what no client library would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

CHAT = b"/v1/chat/completions"
HEALTH = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
BODY = b'{"messages": [{"role": "user", "content": "hello"}]}'
STREAM = BODY[:-1] + b', "stream": true}'


def post(body: bytes = BODY, *headers: bytes, path: bytes = CHAT) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"host: localhost", b"content-length: %d" % len(body)]
    return b"\r\n".join([*lines, *headers, b"", body])


def chunked(*parts: bytes, path: bytes = CHAT) -> bytes:
    """The head and parts of a body, as they are: sizes and ends are the caller's."""
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % path
    return head + b"".join(parts)


@contextlib.asynccontextmanager
async def connected(stack, *, limit: int = 65536, seconds: float = 10):
    """A connection to a served stack; all that is done with it has so many seconds."""
    host, port = stack.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=limit)
    try:
        async with asyncio.timeout(seconds):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader):
    """Status, headers and the error of one answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (h.partition(": ") for h in head[1:])}
    body = json.loads(await reader.readexactly(int(headers["content-length"])))
    return int(head[0].split()[1]), headers, body.get("error", body)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody tells of."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


def counted(stack, code: str) -> int:
    """How often the metrics say that clients were told an error."""
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in stack.metrics.render()[0].decode().splitlines()
        if line.startswith(f'onegpu_errors_total{{code="{code}"}}')
    )
