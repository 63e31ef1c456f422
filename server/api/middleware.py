"""Around every request: its id, its time, its size, its line in the log, its count.

Pure ASGI: a framework's middleware class would buffer streams and break their cancellation.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import refuse
from server.api.limits import ApiLimits
from server.api.record import KEY, RequestRecord
from server.core.clock import Clock
from server.core.errors import OnegpuError, RequestTooLarge
from server.gateway.rate_limit import rate_headers
from server.gateway.telemetry import Telemetry

log = logging.getLogger(__name__)
access_log = logging.getLogger("onegpu.access")

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_QUIET = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by machines; logged at DEBUG unless they fail."""


class RequestMiddleware:
    """Wraps the application."""

    def __init__(
        self, app: ASGIApp, *, limits: ApiLimits, clock: Clock, telemetry: Telemetry
    ) -> None:
        """`app` is the next one inwards."""
        self.app = app
        self.limits = limits
        self.clock = clock
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; never raises for what went wrong inside."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(_request_id(headers), self.clock.monotonic())
        scope[KEY] = record
        call = _Call(self, record, scope, receive, send)
        try:
            call.check_length(headers)
            await self.app(scope, call.receive, call.send)
        except Exception as error:  # noqa: BLE001 - this is where they end
            await call.fail(error)
        finally:
            self._finish(scope, record)

    def _finish(self, scope: Scope, record: RequestRecord) -> None:
        seconds = self.clock.monotonic() - record.begun
        endpoint = getattr(scope.get("route"), "path", "unmatched")
        self.telemetry.request(endpoint, record.status, seconds)
        if record.error is not None:
            self.telemetry.error(record.error)
        level = logging.DEBUG if endpoint in _QUIET and record.status < 400 else logging.INFO
        if access_log.isEnabledFor(level):
            facts = _facts(record, seconds)
            access_log.log(
                level,
                "%s %s %d",
                scope["method"],
                endpoint if endpoint != "unmatched" else repr(scope["path"])[:200],
                record.status,
                extra={"request_id": record.request_id, "facts": facts},
            )


class _Call:
    """The ASGI callables of one request, wrapped."""

    def __init__(
        self,
        middleware: RequestMiddleware,
        record: RequestRecord,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._middleware = middleware
        self._record = record
        self._receive = receive
        self._send = send
        self._scope = scope
        self._size = 0
        self._begun = False
        self._complete = False

    def check_length(self, headers: Headers) -> None:
        """Refuse a body by its announced size, before any of it is read."""
        length = headers.get("content-length", "")
        if length.isdecimal():
            self._check(int(length[:20]))

    async def receive(self) -> Message:
        """Count what a chunked body really brings."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._check(self._size)
        return message

    async def send(self, message: Message) -> None:
        """Put this server's headers on the answer."""
        if message["type"] == "http.response.start":
            self._begun = True
            self._record.status = message["status"]
            seconds = self._middleware.clock.monotonic() - self._record.begun
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._record.request_id
            headers["openai-processing-ms"] = str(round(seconds * 1000))
            if self._record.windows is not None:
                headers.update(rate_headers(self._record.windows()))
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Answer what nobody caught, or end a half-sent answer so that nobody takes it for whole."""
        # Starlette wraps errors that come after the answer's start; the cause says what happened.
        if isinstance(error.__cause__, OnegpuError):
            error = error.__cause__
        refusal = refuse(error, started=self._record.started)
        self._record.error = refusal.code
        if refusal.code == "internal_error":
            log.error(
                "A request failed", exc_info=error, extra={"request_id": self._record.request_id}
            )
        if not self._begun:
            await refusal.response()(self._scope, self._receive, self.send)
        elif not self._complete:
            await self._cut()

    async def _cut(self) -> None:
        """Reset the connection: closing it would wait for a reader that may never read."""
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()
            # Let the server see the lost connection before the application returns.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _check(self, size: int) -> None:
        limit = self._middleware.limits.max_body
        if size > limit:
            raise RequestTooLarge(
                f"The request body is over this server's limit of {limit} bytes "
                "(server.max_request_size)."
            )


def _request_id(headers: Headers) -> str:
    """Take the client's own id where it is fit for logs and headers."""
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _facts(record: RequestRecord, seconds: float) -> dict[str, object]:
    facts: dict[str, object] = {"status": record.status, "ms": round(seconds * 1000, 1)}
    if record.key:
        facts["key"] = record.key
    if record.error is not None:
        facts["code"] = record.error
    for generation in record.generations:
        facts["prompt_tokens"] = generation.prompt_tokens
        facts["cached_tokens"] = generation.cached_tokens
        facts["completion_tokens"] = generation.completion_tokens
        if not generation.complete:
            facts["aborted"] = True
        if (first := generation.seconds_to_first_token) is not None:
            facts["first_token_ms"] = round(first * 1000, 1)
    return facts
