"""Around every request: its id, its time, its size, its line in the log, its count.

Pure ASGI: a framework's middleware class would buffer streams and break their cancellation.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import refuse
from server.api.limits import ApiLimits
from server.api.record import KEY, RequestRecord
from server.api.report import UNMATCHED, Reporter
from server.core.errors import ClientStalled, OnegpuError, RequestTooLarge
from server.gateway.rate_limit import rate_headers

log = logging.getLogger(__name__)


class RequestMiddleware:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, *, limits: ApiLimits, reporter: Reporter) -> None:
        """`app` is the next one inwards."""
        self.app = app
        self.limits = limits
        self.reporter = reporter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; never raises for what went wrong inside."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = scope[KEY] = self.reporter.begin(headers)
        call = _Call(self, record, scope, receive, send)
        try:
            call.check_length(headers)
            await self.app(scope, call.receive, call.send)
        except Exception as error:  # noqa: BLE001 - this is where they end
            await call.fail(error)
        finally:
            endpoint = record.endpoint or getattr(scope.get("route"), "path", UNMATCHED)
            self.reporter.end(record, scope["method"], scope["path"], endpoint)


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
        """Put this server's headers on the answer. Raises `ClientStalled`."""
        if message["type"] == "http.response.start":
            self._begun = True
            self._record.status = message["status"]
            seconds = self._middleware.reporter.seconds(self._record)
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._record.request_id
            headers["openai-processing-ms"] = str(round(seconds * 1000))
            if self._record.windows is not None:
                headers.update(rate_headers(self._record.windows()))
        elif message.get("more_body", False):
            # Parts of a stream: it has a watchdog of its own, which costs less than a timer for each.
            await self._send(message)
            return
        await self._send_in_time(message)
        self._complete = message["type"] == "http.response.body"

    async def _send_in_time(self, message: Message) -> None:
        """Wait for a client that has not read what was sent before, but not for ever."""
        patience = self._middleware.limits.write_timeout
        try:
            async with asyncio.timeout(patience):
                await self._send(message)
        except TimeoutError:
            raise ClientStalled(f"The client read nothing for {patience:g} s.") from None

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
