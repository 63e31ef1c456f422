"""Request bodies: JSON documents checked against a schema, with errors that say what to do."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from server.api.errors import HttpError, invalid
from server.api.record import record_of
from server.core.errors import ClientStalled, InvalidRequest

Model = TypeVar("Model", bound=BaseModel)
_SLOWEST = 1024
"""Bytes per second. What comes slower, and for longer than one pause, only keeps its connection."""


async def read_body(request: Request, pause: float) -> bytes:
    """Return the whole body. Raises `ClientStalled` when nothing, or too little, comes for long.

    Nothing for `pause` seconds, or so slowly that all of it has `pause` seconds and one more for
    each kilobyte. The middleware bounds its size. Raises `ClientDisconnect` too.
    """
    time = asyncio.get_running_loop().time
    chunks: list[bytes] = []
    end = time() + pause
    while True:
        try:
            async with asyncio.timeout_at(min(end, time() + pause)):
                message = await request.receive()
        except TimeoutError:
            raise ClientStalled(
                f"The request body stopped coming for {pause:g} s, or came too slowly; send it again."
            ) from None
        end += len(message.get("body", b"")) / _SLOWEST
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def read_model(request: Request, model: type[Model], pause: float) -> Model:
    """Return the body as `model`. Raises `InvalidRequest` with the field's path in `param`."""
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HttpError(
            "invalid_request", f"The content type must be application/json, not {kind[:100]!r}."
        )
    body = await read_body(request, pause)
    record_of(request).fingerprint = fingerprint(request.url.path, body)
    return parse_model(body, model)


def fingerprint(path: str, body: bytes) -> bytes:
    """Return 16 bytes that are equal for equal requests, byte by byte."""
    digest = hashlib.blake2b(path.encode("utf-8", "replace"), digest_size=16)
    digest.update(b"\0")
    digest.update(body)
    return digest.digest()


def parse_model(body: bytes, model: type[Model]) -> Model:
    """Check a JSON document against `model`. Raises `InvalidRequest`."""
    if not body.strip():
        raise InvalidRequest("The request body is empty; send a JSON object.")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if any(part["type"] == "json_invalid" for part in error.errors(include_input=False)):
            raise _broken_json(body, error) from error
        raise invalid(error) from error


def _broken_json(body: bytes, error: ValidationError) -> InvalidRequest:
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        return InvalidRequest(
            f"The request body is not valid UTF-8: byte {wrong.start} ({wrong.reason})."
        )
    reason = error.errors(include_input=False)[0]["msg"].removeprefix("Invalid JSON: ")
    return InvalidRequest(f"The request body is not valid JSON: {reason}.")


def ignored_header(names: list[str]) -> dict[str, str]:
    """Name the fields that had no effect; the names come from the client, hence the quoting."""
    if not names:
        return {}
    listed = ", ".join(quote(name[:100], safe="._-[]") for name in sorted(set(names))[:50])
    return {"x-ignored-fields": listed}
