"""One streaming chat on a connection of its own, and when each piece of its answer came.

A new connection for each request: a pooled one may be closed by the server at the moment of its
reuse, which would count as a reset. Nothing is retried.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

_ERROR_BYTES = 1 << 16
"""Of a refusal's body, as much is read as explains it."""


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    prefix: str = ""
    """Path before `/v1`."""
    tls: ssl.SSLContext | None = None
    key: str = field(default="", repr=False)

    def chat(self, body: bytes) -> bytes:
        """Return the bytes of a chat completion request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != (443 if self.tls else 80):
            host += f":{self.port}"
        lines = [
            f"POST {self.prefix}/v1/chat/completions HTTP/1.1",
            f"Host: {host}",
            "Connection: close",
            "Accept: text/event-stream",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*lines, "\r\n"]).encode() + body


@dataclass
class Outcome:
    """What came of one request. Times are seconds since it was begun, connecting included."""

    status: int = 0
    """0: the connection broke, or there was none."""
    code: str = ""
    """Of an error, in the answer or in its stream; of a broken connection the exception's name."""
    message: str = ""
    error: object = None
    """The error as it was sent."""
    retry_after: float = 0.0
    streamed: bool = False
    begin: float = 0.0
    """`time.perf_counter()`."""
    arrivals: list[float] = field(default_factory=list)
    """When each chunk came that brought text, reasoning or a part of a tool call."""
    total: float = 0.0
    usage: dict[str, Any] | None = None
    cached: int | None = None
    """Prompt tokens that the server did not compute again, where it tells."""
    pieces: list[str] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    """Names of the tools that were called."""
    kind: str = ""
    """Which question of its scenario it was."""

    @property
    def good(self) -> bool:
        """Whether the answer was complete."""
        return self.status == 200 and not self.code

    @property
    def first(self) -> float:
        """Seconds to the first token; 0 when none came."""
        return self.arrivals[0] if self.arrivals else 0.0

    @property
    def gaps(self) -> list[float]:
        """Seconds between one token and the next."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def text(self) -> str:
        """The answer, without its reasoning."""
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        """Generated tokens: as the server counts them, else the chunks that brought some."""
        return self._counted("completion_tokens") or len(self.arrivals)

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, where the server tells."""
        return self._counted("prompt_tokens")

    def _counted(self, name: str) -> int | None:
        found = self.usage.get(name) if self.usage else None
        return found if isinstance(found, int) else None


async def ask(
    target: Target,
    body: bytes,
    patience: float,
    begun: Callable[[], None] | None = None,
) -> Outcome:
    """Send `body` and read the answer to its end, at most `patience` seconds.

    Whatever the server does is an outcome, not an exception. `begun` is called at the first token.
    """
    outcome = Outcome(begin=time.perf_counter())
    loop = asyncio.get_running_loop()
    events = EventStream(outcome, begun)
    exchange = _Exchange(target.chat(body), outcome, events, loop.create_future())
    try:
        async with asyncio.timeout(patience):
            transport, _ = await loop.create_connection(
                lambda: exchange, target.host, target.port, ssl=target.tls
            )
            try:
                await exchange.over
            finally:
                transport.abort()
    except (OSError, EOFError, TimeoutError) as error:
        outcome.status, outcome.code = 0, type(error).__name__
        outcome.message = str(error) or f"no whole answer within {patience:g} s"
    outcome.total = time.perf_counter() - outcome.begin
    return outcome


class _Exchange(asyncio.Protocol):
    """Reads one answer; `over` has no result, or says how the connection broke."""

    def __init__(
        self, request: bytes, outcome: Outcome, events: EventStream, over: asyncio.Future[None]
    ) -> None:
        self.over = over
        self._request, self._outcome, self._events = request, outcome, events
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.WriteTransport, and write all the same.
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._events.now = time.perf_counter() - self._outcome.begin
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionError(f"what came is not HTTP: {error}"))
        except httptools.HttpParserUpgrade:
            self._end(ConnectionError("the server wants another protocol"))

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, OSError):
            self._end(exc)
        elif self._outcome.status:  # an answer without a length ends with its connection
            self.on_message_complete()
        self._end(ConnectionResetError("the connection was closed before the answer was complete"))

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"retry-after" and value.isdigit():
            self._outcome.retry_after = float(value)
        elif name == b"content-type":
            self._outcome.streamed = value.lower().startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        self._outcome.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._outcome.status != 200 or not self._outcome.streamed:
            self._body = (self._body + body)[:_ERROR_BYTES]
        elif self._events.push(body):
            self._end()

    def on_message_complete(self) -> None:
        outcome = self._outcome
        if outcome.status == 200:
            if outcome.streamed and not self._events.whole:
                self._end(ConnectionResetError("the stream ended before the answer was complete"))
            self._end()
        elif outcome.status >= 200:
            _refused(self._body, outcome)
            self._end()

    def _end(self, error: Exception | None = None) -> None:
        if self.over.done():
            return
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)


class EventStream:
    """Server-sent events of a chat completion, pushed as they come."""

    def __init__(self, outcome: Outcome, begun: Callable[[], None] | None = None) -> None:
        """What is found goes to `outcome`; `begun` is called at the first token."""
        self._begun = begun
        self.now = 0.0
        """When the bytes came that are being pushed."""
        self.whole = False
        """The answer has its finish reason, or `[DONE]` came."""
        self._outcome = outcome
        self._rest = b""
        self._data = b""

    def push(self, data: bytes) -> bool:
        """Take more bytes; True at the end, which is `[DONE]` or an error."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                more = line[5:].removeprefix(b" ")
                self._data = self._data + b"\n" + more if self._data else more
            elif not line and self._data:
                event, self._data = self._data, b""
                if event == b"[DONE]":
                    self.whole = True
                    return True
                if self._take(event):
                    return True
        return False

    def _take(self, event: bytes) -> bool:
        outcome = self._outcome
        try:
            chunk = json.loads(event)
            if chunk.get("error") is not None:
                _refused(event, outcome)
                return True
            for choice in chunk.get("choices") or ():
                self._delta(choice.get("delta") or {})
                self.whole = self.whole or bool(choice.get("finish_reason"))
            usage, timings = chunk.get("usage"), chunk.get("timings")
            if usage:
                outcome.usage = usage
                outcome.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
            if timings and outcome.cached is None:
                outcome.cached = timings.get("cache_n")  # llama-server's own count
        except (ValueError, AttributeError, TypeError):
            outcome.code, outcome.message = "malformed", f"not a chunk: {event[:80]!r}"
            return True
        return False

    def _delta(self, delta: dict[str, Any]) -> None:
        text = delta.get("content")
        calls = delta.get("tool_calls") or ()
        if text:
            self._outcome.pieces.append(text)
        for call in calls:
            if name := (call.get("function") or {}).get("name"):
                self._outcome.called.append(name)
        if text or calls or delta.get("reasoning_content") or delta.get("reasoning"):
            if self._begun is not None and not self._outcome.arrivals:
                self._begun()
            self._outcome.arrivals.append(self.now)


def _refused(body: bytes, outcome: Outcome) -> None:
    """Keep what an error says, in any of the shapes that servers give it."""
    outcome.code, outcome.message = "malformed", body[:200].decode(errors="replace")
    try:
        document = json.loads(body)
    except ValueError:
        return
    found = document.get("error", document) if isinstance(document, dict) else document
    outcome.error = found
    if isinstance(found, dict):
        outcome.code = str(found.get("code") or found.get("type") or "error")
        outcome.message = str(found.get("message") or found.get("detail") or outcome.message)
    elif isinstance(found, str):
        outcome.code, outcome.message = "error", found
