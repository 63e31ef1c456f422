"""Answers to what never reaches the application: told, counted and logged as all others are."""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import Refusal
from server.api.report import Reporter


class EarlyAnswers:
    """Refuses for whoever reads the connection."""

    def __init__(self, reporter: Reporter) -> None:
        """`reporter` counts and logs each refusal when it is made."""
        self._reporter = reporter

    def app(self, refusal: Refusal) -> ASGIApp:
        """Return an application that answers a request, whose head was read, with the refusal."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            record = self._reporter.begin(Headers(scope=scope))
            record.status, record.error = refusal.status, refusal.code
            response = refusal.response()
            response.headers["x-request-id"] = record.request_id
            response.headers["connection"] = "close"
            self._reporter.end(record, scope["method"], scope["path"])
            await response(scope, receive, send)

        return answer

    def raw(self, refusal: Refusal) -> bytes:
        """Return the whole answer where there is no head that could be understood."""
        record = self._reporter.begin()
        record.status, record.error = refusal.status, refusal.code
        headers = {
            "content-type": "application/json",
            "content-length": str(len(refusal.body)),
            "x-request-id": record.request_id,
            "connection": "close",
            **refusal.headers,
        }
        lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._reporter.end(record, "-", None)
        return "\r\n".join([*lines, "", ""]).encode() + refusal.body

    def stalled(self) -> None:
        """Count a client that did not read its answer; it is told nothing more."""
        self._reporter.error("client_stalled")
