"""Every request's end: its line in the access log and its count."""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers

from server.api.record import RequestRecord
from server.core.clock import Clock
from server.gateway.telemetry import Telemetry

access_log = logging.getLogger("onegpu.access")

UNMATCHED = "unmatched"
"""The endpoint of what no route was found for."""
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_QUIET = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by machines; logged at DEBUG unless they fail."""


class Reporter:
    """Makes the record of a request, and tells what became of it."""

    def __init__(self, telemetry: Telemetry, clock: Clock) -> None:
        """Keep nothing itself."""
        self._telemetry = telemetry
        self._clock = clock

    def begin(self, headers: Headers | None = None) -> RequestRecord:
        """Return a new record, with the client's own id where it is fit for logs and headers."""
        given = "" if headers is None else headers.get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        return RequestRecord(request_id, self._clock.monotonic())

    def seconds(self, record: RequestRecord) -> float:
        """Return the time since the request began."""
        return self._clock.monotonic() - record.begun

    def end(
        self, record: RequestRecord, method: str, path: str | None, endpoint: str = UNMATCHED
    ) -> None:
        """Count and log a request. `path`: as the client wrote it; None: it was not read."""
        seconds = self.seconds(record)
        self._telemetry.request(endpoint, record.status, seconds)
        if record.error is not None:
            self._telemetry.error(record.error)
        level = logging.DEBUG if endpoint in _QUIET and record.status < 400 else logging.INFO
        if access_log.isEnabledFor(level):
            asked = "-" if path is None else repr(path)[:200]
            shown = asked if endpoint == UNMATCHED else endpoint
            extra = {"request_id": record.request_id, "facts": _facts(record, seconds)}
            access_log.log(level, "%s %s %d", method, shown, record.status, extra=extra)

    def error(self, code: str) -> None:
        """Count an error that no request is left to be told."""
        self._telemetry.error(code)


def _facts(record: RequestRecord, seconds: float) -> dict[str, object]:
    facts: dict[str, object] = {"status": record.status, "ms": round(seconds * 1000, 1)}
    if record.key:
        facts["key"] = record.key
    if record.error is not None:
        facts["code"] = record.error
    if record.replayed:
        facts["replayed"] = True
    for generation in record.generations:
        facts["prompt_tokens"] = generation.prompt_tokens
        facts["cached_tokens"] = generation.cached_tokens
        if generation.prefix_missed is not None:
            facts["prefix_missed"] = generation.prefix_missed
        facts["completion_tokens"] = generation.completion_tokens
        if generation.closed and not generation.complete:
            facts["aborted"] = True
        if (stand_in := generation.stand_in) is not None:
            facts["fallback"] = f"{stand_in.model} {stand_in.reason}"
        if (first := generation.seconds_to_first_token) is not None:
            facts["first_token_ms"] = round(first * 1000, 1)
    return facts
