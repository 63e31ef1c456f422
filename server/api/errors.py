"""The one place where errors become HTTP: statuses, types, headers and bodies."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.responses import Response

from server.core.errors import (
    InvalidApiKey,
    InvalidRequest,
    OnegpuError,
    Unavailable,
)

STATUS: dict[str, tuple[int, str]] = {
    "invalid_request": (400, "invalid_request_error"),
    "invalid_api_key": (401, "invalid_request_error"),
    "admin_required": (403, "permission_error"),
    "model_not_allowed": (403, "permission_error"),
    "origin_not_allowed": (403, "permission_error"),
    "host_not_allowed": (403, "permission_error"),
    "too_many_failures": (429, "rate_limit_error"),
    "store_unavailable": (503, "service_unavailable_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "client_stalled": (408, "invalid_request_error"),
    "idle_timeout": (408, "invalid_request_error"),
    "request_too_large": (413, "invalid_request_error"),
    "uri_too_long": (414, "invalid_request_error"),
    "idempotency_mismatch": (422, "invalid_request_error"),
    "repeated_crash": (422, "invalid_request_error"),
    "rate_limit_exceeded": (429, "rate_limit_error"),
    "headers_too_large": (431, "invalid_request_error"),
    "generation_failed": (500, "server_error"),
    "internal_error": (500, "server_error"),
    "remote_failed": (502, "server_error"),
    "queue_full": (503, "service_unavailable_error"),
    "queue_timeout": (503, "service_unavailable_error"),
    "deadline_unreachable": (503, "service_unavailable_error"),
    "too_many_connections": (503, "service_unavailable_error"),
    "gpu_memory": (503, "service_unavailable_error"),
    "model_loading": (503, "service_unavailable_error"),
    "model_failed": (503, "service_unavailable_error"),
    "draining": (503, "service_unavailable_error"),
    "engine_dead": (503, "service_unavailable_error"),
    "engine_stalled": (503, "service_unavailable_error"),
    "unavailable": (503, "service_unavailable_error"),
    "engine_timeout": (504, "timeout_error"),
    "total_timeout": (504, "timeout_error"),
}
"""Error code → status and `type`. Codes that are not here are faults of the server."""

_HOPELESS = ("engine_timeout", "total_timeout", "generation_failed", "too_many_failures")
"""Codes that an automatic retry cannot help: work had started, or the key is as wrong as before."""
_LONGEST_RETRY = 120
"""The official SDK ignores a longer `retry-after`."""
_UNKNOWN_RETRY = 10.0
"""Advice in seconds where nothing is known, such as when somebody restarts a dead engine. Without
the header the official SDK tries twice more within two seconds, for nothing."""


class HttpError(OnegpuError):
    """A refusal that only HTTP knows: an unknown path, a method, a content type."""

    def __init__(self, code: str, message: str, *, allow: str | None = None) -> None:
        """`allow`: the methods that a path does have."""
        super().__init__(message)
        self.code = code
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as HTTP tells it."""

    status: int
    code: str
    body: bytes
    headers: dict[str, str]

    def response(self) -> Response:
        """Return it as a response of its own."""
        return Response(self.body, self.status, self.headers, media_type="application/json")

    def event(self) -> bytes:
        """Return it as the last event of a stream."""
        return b"data: " + self.body + b"\n\n"


def refuse(error: Exception, *, started: bool = False) -> Refusal:
    """Tell a client about `error`. `started`: work was done, so a retry would repeat it.

    Errors that are not of this server's tree say nothing about their insides.
    """
    if not isinstance(error, OnegpuError):
        error = OnegpuError("The server failed on this request; its log has the details.")
    status, kind = STATUS.get(error.code, STATUS["internal_error"])
    headers: dict[str, str] = {}
    if error.code == InvalidApiKey.code:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        advice = _UNKNOWN_RETRY if error.retry_after is None else error.retry_after
        headers["retry-after"] = str(min(max(1, math.ceil(advice)), _LONGEST_RETRY))
    elif (exact := getattr(error, "retry_after", None)) is not None:
        # A limit of its own: the time is known, and whoever comes earlier is refused again.
        headers["retry-after"] = str(max(1, math.ceil(exact)))
        headers["retry-after-ms"] = str(max(1, math.ceil(exact * 1000)))
    elif status == 503:
        headers["retry-after"] = str(math.ceil(_UNKNOWN_RETRY))
    if started or error.code in _HOPELESS:
        headers["x-should-retry"] = "false"
    if isinstance(error, HttpError) and error.allow:
        headers["allow"] = error.allow
    told = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    body = json.dumps({"error": told}, ensure_ascii=False).encode("utf-8", "replace")
    return Refusal(status, error.code, body, headers)


def field_path(location: tuple[int | str, ...]) -> str:
    """Write a place in a document as clients do: `messages[0].content`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def invalid(error: ValidationError) -> InvalidRequest:
    """Turn the first complaint of a schema into an error that names its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = field_path(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return InvalidRequest(f"The field {path!r} is missing.", param=path)
    return InvalidRequest(f"Invalid value for {path!r}: {message}.", param=path or None)
