"""A remote's stream as the documents in it, bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2

from server.gateway.remote.wire import Garbage

DONE = "[DONE]"
_MOST_ANSWER = 64 * 2**20
"""Bytes of a whole answer."""
_MOST_EVENT = 2**20
"""Bytes of one event of a stream."""
_LINGER = 1.0
"""Seconds in which what has said its end may end."""


async def documents(response: httpx2.Response) -> AsyncGenerator[str, None]:
    """Yield the data of a stream's events. Raises `Garbage` and `httpx2.HTTPError`.

    Events without data are left out: they say when to connect again, or keep the connection open.
    """
    # By their definition streams of events are UTF-8, perhaps with a mark at their beginning.
    response.encoding = "utf-8-sig"
    size = 0
    events = aiter(httpx2.EventSource(response, max_event_size=_MOST_EVENT))
    async with aclosing(events):  # type: ignore[type-var] # it is a generator
        async for event in events:
            size += len(event.data)
            if size > _MOST_ANSWER:
                raise Garbage(f"more than {_MOST_ANSWER} bytes")
            if data := event.data.strip():
                yield data


async def linger(rest: AsyncGenerator[str, None]) -> None:
    """See a stream that has said its end to its end: only then can its connection be used again."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError, Garbage):
        async with asyncio.timeout(_LINGER):
            await anext(rest, None)
