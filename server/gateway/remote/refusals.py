"""What a remote's refusal or failure means for who asked: its words are passed on only to those who can mend it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import httpx2

from server.core.errors import InvalidRequest, OnegpuError, RemoteFailed
from server.gateway.remote.address import ForbiddenAddress
from server.gateway.remote.wire import Garbage

if TYPE_CHECKING:
    from server.gateway.remote.model import Remote

_MOST_READ = 65536
_MOST_TOLD = 500
_MENDABLE = (400, 413, 422)


class Refused(Exception):
    """The remote is there and does not want this request."""

    def __init__(self, error: OnegpuError) -> None:
        """`error`: what to tell."""
        super().__init__(error.message)
        self.error = error


async def read_refusal(remote: Remote, response: httpx2.Response) -> Exception:
    """Return what an answer other than 200 means: `Refused`, or `RemoteFailed` for the remote's fault."""
    status, name = response.status_code, remote.name
    document = await _document(response)
    if status in _MENDABLE:
        said = _told(document, remote)
        code = document.get("code")
        known = code if code == "context_length_exceeded" else None
        return Refused(
            InvalidRequest(f"The remote {name!r} refuses the request: {said}", code=known)
        )
    if status == 404:
        return Refused(RemoteFailed(f"The remote {name!r} does not have this model or endpoint."))
    if status in (401, 403):
        return RemoteFailed(f"The remote {name!r} does not accept the key of this server.")
    if status == 429:
        return RemoteFailed(
            f"The remote {name!r} limits this server.", retry_after=_retry_after(response)
        )
    if response.is_redirect:
        return RemoteFailed(
            f"The remote {name!r} redirects, which is not followed: base_url is wrong."
        )
    return RemoteFailed(
        f"The remote {name!r} answers with status {status}.", retry_after=_retry_after(response)
    )


def explained(name: str, error: Exception) -> OnegpuError:
    """Say what went wrong, with nothing of addresses or keys."""
    if isinstance(error, OnegpuError):
        return error
    if isinstance(error, Garbage | httpx2.SSEError):
        what = f"sent what cannot be used ({error})"
    elif isinstance(error, ForbiddenAddress):
        what = "leads to an address that no remote may have"
    elif isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        what = "cannot be reached"
    elif isinstance(error, TimeoutError | httpx2.TimeoutException):
        what = "was silent for too long"
    else:
        what = "ended the connection"
    return RemoteFailed(f"The remote {name!r} {what}.")


async def _document(response: httpx2.Response) -> dict[str, Any]:
    """Return the error that a body tells; empty where it tells none."""
    data = bytearray()
    async for part in response.aiter_bytes():
        data += part
        if len(data) > _MOST_READ:
            return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {}


def _told(document: dict[str, Any], remote: Remote) -> str:
    message = document.get("message")
    if not isinstance(message, str) or not message:
        return "it does not say why."
    key = remote.limits.api_key
    return (message.replace(key, "***") if key else message)[:_MOST_TOLD]


def _retry_after(response: httpx2.Response) -> float | None:
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
