"""What a client says about other models answering for the one it asks, and what it is told of it."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request

from server.core.errors import InvalidRequest
from server.gateway.generation import StandIn

HEADER = "x-fallback"
MODEL = "x-fallback-model"
REASON = "x-fallback-reason"


def fallback_allowed(request: Request) -> bool:
    """Whether another model may answer. Raises `InvalidRequest` for anything but `none`."""
    text = request.headers.get(HEADER)
    if text is None:
        return True
    if text.strip().lower() != "none":
        raise InvalidRequest(
            f"The header {HEADER} can only be 'none': the model asked for, or an error. "
            f"It is {text[:50]!r}.",
            param=HEADER,
        )
    return False


def fallback_headers(stand_in: StandIn | None) -> dict[str, str]:
    """Say who answers instead, and why."""
    if stand_in is None:
        return {}
    return {MODEL: _name(stand_in), REASON: stand_in.reason}


def fallback_comment(stand_in: StandIn) -> bytes:
    """Say the same in a stream whose headers are gone."""
    return f": fallback {_name(stand_in)} {stand_in.reason}\n\n".encode()


def _name(stand_in: StandIn) -> str:
    """Names may have any characters, headers and lines may not."""
    return quote(stand_in.model, safe="/:._-@+~")
