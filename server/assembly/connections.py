"""Bounds of a connection: how many, how long for a request's head, how large it may be.

uvicorn's protocol has none of them: a client that sends its headers byte by byte, or never, would
keep its connection for ever.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.api.errors import HttpError, Refusal, refuse

_LINGER_SECONDS = 2.0
"""How long a client that was sent away may go on sending before its connection is reset."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Sizes in bytes, times in seconds."""

    connections: int = 1000
    head_seconds: float = 30.0
    """Longest time from the first byte of a request, or from connecting, to the end of its head."""
    head_bytes: int = 65536
    """Request line and headers."""
    url_bytes: int = 8192
    spare_bytes: int = 10_000_000
    """Of a body that was refused: read for the sake of those who send before they listen."""


class BoundedProtocol(HttpToolsProtocol):
    """Answers what goes beyond the limits in the form that all errors have, then closes."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As uvicorn makes it."""
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._spare = 0
        self._in_head = False
        """Whether a head has begun and is not complete."""
        self._ended = False
        """Answered for the last time: what still comes is thrown away."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; count what belongs to a head that is not complete."""
        if self._over():
            return
        within = self._in_head
        super().data_received(data)
        if self._over():
            return
        if within and self._in_head:
            self._head_size += len(data)
            if self._head_size > self.limits.head_bytes:
                self._end(_too_large(self.limits))
                return
        # The framework has just forgotten its own timer; empty lines would keep the place for ever.
        if self._timer is None and not self._busy and self.timeout_keep_alive_task is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head, self._head_size, self._spare = True, 0, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Hand a head on, or refuse what it is."""
        self._in_head = False
        self._stop_timer()
        refusal = self._judge()
        if refusal is None:
            super().on_headers_complete()
            return
        app, self.app = self.app, _refuser(refusal)
        try:
            super().on_headers_complete()
        finally:
            self.app = app

    def on_body(self, body: bytes) -> None:
        """Take the body of a request that was answered already only up to a size."""
        if self.cycle.response_complete:
            self._spare += len(body)
            if self._spare > self.limits.spare_bytes:
                self.transport.abort()
            return
        super().on_body(body)

    def _over(self) -> bool:
        """Whether nothing is to come any more."""
        return self._ended or self.transport.is_closing()

    @property
    def _busy(self) -> bool:
        """Whether an answer is under way."""
        return bool(self.cycle) and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Tell of what is no HTTP, in the form that all errors have."""
        self._end(refuse(HttpError("invalid_request", msg)))

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client never read its answer would not close."""
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.transport.abort()
            return
        super().timeout_keep_alive_handler()

    def _judge(self) -> Refusal | None:
        limits = self.limits
        if len(self.connections) > limits.connections:
            return refuse(
                HttpError(
                    "too_many_connections",
                    f"This server has {limits.connections} connections, as many as it may "
                    "(server.max_connections). Try again later.",
                )
            )
        if len(self.url) > limits.url_bytes:
            return refuse(
                HttpError(
                    "uri_too_long",
                    f"The request's path is over this server's limit of {limits.url_bytes} bytes.",
                )
            )
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return _too_large(limits) if size > limits.head_bytes else None

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.head_seconds, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._busy or self._over():
            return
        message = f"The request's headers did not come within {self.limits.head_seconds:g} s."
        self._end(refuse(HttpError("client_stalled", message)))

    def _end(self, refusal: Refusal) -> None:
        """Answer outside of the application. Within an answer there is only the end."""
        self._stop_timer()
        if self._busy or self._ended:
            self.transport.close()
            return
        self._ended = True
        self.transport.write(_raw(refusal))
        # To close while something is unread resets the connection, and the client may lose this.
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)


def bounded(limits: ConnectionLimits) -> type[BoundedProtocol]:
    """Return the protocol class with these limits: uvicorn makes the instances."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})


def _too_large(limits: ConnectionLimits) -> Refusal:
    message = f"The request's headers are over this server's limit of {limits.head_bytes} bytes."
    return refuse(HttpError("headers_too_large", message))


def _refuser(refusal: Refusal) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        response = refusal.response()
        response.headers["connection"] = "close"
        await response(scope, receive, send)

    return app


def _raw(refusal: Refusal) -> bytes:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(refusal.body)),
        "connection": "close",
        **refusal.headers,
    }
    lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + refusal.body
