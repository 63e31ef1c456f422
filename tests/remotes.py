"""A real server with the OpenAI API that does what the test says, for remotes to talk to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from server.core.clock import Clock
from server.gateway.agent import Agent
from server.gateway.remote.breaker import BreakerLimits
from server.gateway.remote.model import UNKNOWN, Distant, Remote, RemoteLimits
from tests.fakes import FakeClock
from tests.listening import listening
from tests.serving import Stack

KEY = "sk-remote-0123456789"
Send = Callable[[bytes], Awaitable[None]]


@dataclass
class Exchange:
    """One request as it came, and the means to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    _send: Any
    _gone: asyncio.Event
    begun: bool = False

    async def head(self, status: int = 200, kind: str = "text/event-stream", **more: str) -> None:
        headers = {"content-type": kind, **{k.replace("_", "-"): v for k, v in more.items()}}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        self.begun = True

    async def part(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def say(self, *documents: Any) -> None:
        """Send events; a string as it is."""
        if not self.begun:
            await self.head()
        for one in documents:
            text = one if isinstance(one, str) else json.dumps(one)
            await self.part(f"data: {text}\n\n".encode())

    async def answer(self, status: int, document: Any, **headers: str) -> None:
        await self.head(status, "application/json", **headers)
        await self.part(document if isinstance(document, bytes) else json.dumps(document).encode())

    async def gone(self) -> None:
        """Wait until the caller has closed the connection."""
        async with asyncio.timeout(10):
            await self._gone.wait()


Behaviour = Callable[[Exchange], Awaitable[None]]


def chunk(text: str | None = None, *, reason: str | None = None, index: int = 0, **delta: Any):
    """A chunk as OpenAI sends it."""
    if text is not None:
        delta["content"] = text
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {"id": "theirs", "model": "theirs", "created": 1, "choices": [choice]}


def usage(prompt: int = 11, completion: int = 7):
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"id": "theirs", "choices": [], "usage": counts}


async def friendly(exchange: Exchange) -> None:
    """Answer as OpenAI does."""
    if exchange.path.endswith("/models"):
        await exchange.answer(200, {"object": "list", "data": []})
    elif exchange.path.endswith("/chat/completions"):
        await exchange.say(
            chunk("", role="assistant"),
            chunk("from "),
            chunk("afar"),
            chunk(reason="stop"),
            usage(),
            "[DONE]",
        )
    else:
        texts = [{"choices": [{"index": 0, "text": text}]} for text in ("from ", "afar")]
        end = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
        await exchange.say(*texts, end, usage(), "[DONE]")


@dataclass
class FakeRemote:
    """What it is asked, and how it behaves: `next` first, one by one, then `behave`."""

    behave: Behaviour = friendly
    next: list[Behaviour] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    url: str = ""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        gone = asyncio.Event()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        body = json.loads(data) if data else None
        exchange = Exchange(scope["method"], scope["path"], headers, body, send, gone)
        self.exchanges.append(exchange)
        self.arrived.set()
        watching = asyncio.create_task(watch())
        try:
            await (self.next.pop(0) if self.next else self.behave)(exchange)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watching.cancel()

    async def asked(self) -> Exchange:
        """Wait for a request; return the latest."""
        async with asyncio.timeout(10):
            await self.arrived.wait()
        self.arrived.clear()
        return self.exchanges[-1]


@contextlib.asynccontextmanager
async def remote_server(remote: FakeRemote) -> AsyncIterator[FakeRemote]:
    """Serve until the block ends."""
    async with listening(remote, ws="none", timeout_graceful_shutdown=1) as (address, _):
        remote.url = f"{address}/v1"
        yield remote


def distant(
    stack: Stack, name: str, url: str, clock: Clock | None = None, n_ctx: int = UNKNOWN, **limits
) -> Distant:
    """Make a remote whose requests wait in the stack's line."""
    values = {
        "base_url": url,
        "model": "theirs",
        "api_key": KEY,
        "connect_timeout": 5.0,
        "read_timeout": 5.0,
        "breaker": BreakerLimits(failures=2, pause=30.0),
    }
    made = RemoteLimits(**{**values, **limits})
    lane = stack.admission.open_lane(made.connections)
    return Distant(Agent((name,), n_ctx=n_ctx), Remote(name, made, lane, clock or FakeClock()))
