"""Bounds of a connection: how many, how long for a request's head, how large it may be.

uvicorn's protocol has none of them: a client that sends its headers byte by byte, or never, would
keep its connection for ever. Nor does it mind what two readers would understand differently.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.api.early import EarlyAnswers
from server.api.errors import HttpError, Refusal, refuse

_LINGER_SECONDS = 2.0
"""How long a client that was sent away may go on sending before its connection is reset."""
_SURPLUS_SECONDS = 5.0
"""How long a connection that is one too many may take to ask, and be told so."""
_AHEAD = 16
"""Requests that are read ahead of the one that is being answered."""
_HANDSHAKE = (b"upgrade", b"http2-settings")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Sizes in bytes, times in seconds."""

    connections: int = 1000
    head_seconds: float = 30.0
    """Longest time from the first byte of a request, or from connecting, to the end of its head."""
    head_bytes: int = 65536
    """Request line and headers; also what may come without being part of a head or a body."""
    url_bytes: int = 8192
    spare_bytes: int = 10_000_000
    """Of a body that was refused: read for the sake of those who send before they listen."""


class BoundedProtocol(HttpToolsProtocol):
    """Answers what goes beyond the limits in the form that all errors have, then closes."""

    limits: ClassVar[ConnectionLimits]
    early: ClassVar[EarlyAnswers]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As uvicorn makes it."""
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        """The request that is answered; `cycle` is the last one that was read."""
        self._idle_bytes = 0
        """Read since something was complete, or a part of a body came."""
        self._spare = 0
        self._in_head = False
        """Whether a head has begun and is not complete."""
        self._surplus = False
        """One connection too many."""
        self._ended = False
        """Answered for the last time: what still comes is thrown away."""

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time."""
        super().connection_made(transport)
        # Known now: whoever came before goes on being served.
        self._surplus = len(self.connections) > self.limits.connections
        most = self.limits.head_seconds
        self._start_timer(min(most, _SURPLUS_SECONDS) if self._surplus else most, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timer; tell the request that is answered, even if others were sent after it."""
        self._stop_timer()
        super().connection_lost(exc)
        self._disconnect(self._running)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; bound what comes without being of use."""
        if self._over():
            return
        self._unset_keepalive_if_required()
        self._idle_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._end(_invalid("Invalid HTTP request received."))
        if self._over():
            return
        if self._idle_bytes > self.limits.head_bytes:
            self._end(_too_large(self.limits))
        # The idle timer was just stopped; empty lines would keep the place for ever.
        elif self._timer is None and not self._busy and self.timeout_keep_alive_task is None:
            self._start_timer(self.limits.head_seconds, self._late)

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Another protocol was offered. The parser leaves the rest, a body too, to that one.
                if self._busy or self._ended:
                    raise httptools.HttpParserError from upgrade
                data = self._head_without_offer() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                # As uvicorn's: what comes after `connection: close` is no error.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    # What the parser finds

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head, self._spare = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes after a body must not be taken for one."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand a head on, or refuse what it is."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return  # comes again, without the offer
        self._in_head, self._idle_bytes = False, 0
        self._stop_timer()
        refusal = self._judge()
        app = self.app
        if refusal is not None:
            self.app = self.early.app(refusal)
        try:
            super().on_headers_complete()
        finally:
            self.app = app
        if 0 < len(self.pipeline) <= _AHEAD:
            # Who is not read from cannot be seen to go.
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """Take the body of a request that was answered already only up to a size."""
        self._idle_bytes = 0
        if self.cycle.response_complete:
            self._spare += len(body)
            if self._spare > self.limits.spare_bytes:
                self.transport.abort()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request, unless its head comes again."""
        if not self._in_head:
            self._idle_bytes = 0
            super().on_message_complete()

    # What uvicorn does

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on, or close: a client that does not read its last answer must not keep it open."""
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_timer(self.timeout_keep_alive, self._give_up)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, with words: a request may be under way just now."""
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self._give_up()
        else:
            message = f"This connection was idle for {self.timeout_keep_alive} s. Send it again."
            self._end(refuse(HttpError("idle_timeout", message)))

    # Details

    def _over(self) -> bool:
        """Whether nothing is to come any more."""
        return self._ended or self.transport.is_closing()

    @property
    def _busy(self) -> bool:
        """Whether an answer is under way."""
        return bool(self.cycle) and not self.cycle.response_complete

    def _judge(self) -> Refusal | None:
        limits = self.limits
        if self._surplus:
            return _too_many(limits)
        if len(self.url) > limits.url_bytes:
            return refuse(
                HttpError(
                    "uri_too_long",
                    f"The request's path is over this server's limit of {limits.url_bytes} bytes.",
                )
            )
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > limits.head_bytes:
            return _too_large(limits)
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            return _invalid("A request has one header Host.")
        return None

    def _head_without_offer(self) -> bytes:
        """Write the head that was just read again, without what offers another protocol."""
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                kept = b", ".join(token for token in tokens if token.lower() not in _HANDSHAKE)
                lines += [b"connection: " + kept] if kept else []
            elif name not in _HANDSHAKE:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _start_timer(self, seconds: float, then: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._busy or self._over():
            return
        self._end(_too_many(self.limits) if self._surplus else _stalled(self.limits))

    def _give_up(self) -> None:
        self.early.stalled()
        self.transport.abort()

    def _disconnect(self, cycle: RequestResponseCycle | None) -> None:
        """Let the application see that nobody waits for this answer any more."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _end(self, refusal: Refusal) -> None:
        """Answer outside of the application, in place of an answer that has not begun."""
        self._stop_timer()
        if self._busy and (self.cycle.response_started or self.pipeline):
            self.transport.close()  # within an answer there is only the end
            return
        if self._busy:
            self._disconnect(self.cycle)
        self._ended = True
        self.transport.write(self.early.raw(refusal))
        # To close while something is unread resets the connection, and the client may lose this.
        self.transport.write_eof()
        self._start_timer(_LINGER_SECONDS, self.transport.abort)


def bounded(limits: ConnectionLimits, early: EarlyAnswers) -> type[BoundedProtocol]:
    """Return the protocol class with these limits: uvicorn makes the instances."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits, "early": early})


def _too_many(limits: ConnectionLimits) -> Refusal:
    message = (
        f"This server has {limits.connections} connections, as many as it may "
        "(server.max_connections). Try again later."
    )
    return refuse(HttpError("too_many_connections", message))


def _stalled(limits: ConnectionLimits) -> Refusal:
    message = f"The request's headers did not come within {limits.head_seconds:g} s."
    return refuse(HttpError("client_stalled", message))


def _too_large(limits: ConnectionLimits) -> Refusal:
    message = f"The request's headers are over this server's limit of {limits.head_bytes} bytes."
    return refuse(HttpError("headers_too_large", message))


def _invalid(message: str) -> Refusal:
    return refuse(HttpError("invalid_request", message))
