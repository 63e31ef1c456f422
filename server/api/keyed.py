"""Requests with an `Idempotency-Key`: the first one is worked on, later ones get the same answer."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from server.api.access import principal_of
from server.api.deadline import seconds_given
from server.api.disconnect import unless_disconnected
from server.api.errors import refuse
from server.api.fallback import fallback_allowed
from server.api.parts import Parts
from server.api.record import KEY as RECORD
from server.api.record import RequestRecord, record_of
from server.api.sse import EventStream
from server.core.errors import InvalidRequest
from server.gateway.answers import Answer, Reader

log = logging.getLogger(__name__)

HEADER = "idempotency-key"
REPLAYED = "idempotency-replayed"
_FORM = re.compile(r"[\x21-\x7e]{1,255}")

Work = Callable[[Request], Awaitable[Response]]
"""Answers a request; what it is given may have no connection any more, so it must not receive."""


def key_given(request: Request) -> str | None:
    """Return the request's key; None for none. Raises `InvalidRequest` for what is no key."""
    texts = set(request.headers.getlist(HEADER))
    if not texts:
        return None
    text = texts.pop()
    if texts or _FORM.fullmatch(text) is None:
        raise InvalidRequest(
            f"The header {HEADER} must be one key of 1 to 255 visible ASCII characters.",
            param=HEADER,
        )
    return text


async def respond(parts: Parts, request: Request, work: Work) -> Response:
    """Answer a request whose body was read: by `work`, or by what was answered to its key before.

    Without a key, `work` ends when the client goes.
    """
    key = key_given(request)
    if key is None:
        return await unless_disconnected(request.receive, work(request))
    seconds_given(request, parts.clock)  # an ill-formed deadline is refused, whoever began the work
    record, principal = record_of(request), principal_of(request)
    record.windows = functools.partial(parts.service.windows, principal)
    made = functools.partial(_produce, _detached(request), work)
    # Who wants no other model's answer does not ask for the same as who takes one.
    said = record.fingerprint + (b"" if fallback_allowed(request) else b"none")
    reader = parts.answers.join(principal.key_id, key, said, made)
    record.replayed = reader.replayed
    try:
        return await unless_disconnected(request.receive, _read(parts, record, reader))
    except BaseException:
        reader.close()
        raise


@dataclass(frozen=True, slots=True)
class Head:
    """The part of an answer that comes before its body."""

    status: int
    headers: dict[str, str]
    stream: bool


async def _read(parts: Parts, record: RequestRecord, reader: Reader[Head]) -> Response:
    head = await reader.head()
    headers = {**head.headers, REPLAYED: "true"} if reader.replayed else head.headers
    if head.stream:
        return EventStream(
            _parts_of(record, reader),
            reader.close,
            send_timeout=parts.limits.write_timeout,
            headers=headers,
        )
    body = await reader.whole()
    record.error = reader.error
    reader.close()
    return Response(body, head.status, headers)


async def _parts_of(record: RequestRecord, reader: Reader[Head]) -> AsyncGenerator[bytes, None]:
    while part := await reader.read():
        yield part
    record.error = reader.error


def _detached(request: Request) -> Request:
    """Return the request without its connection, and with a record that no connection changes."""
    record = record_of(request)
    own = RequestRecord(
        record.request_id,
        record.begun,
        record.key,
        fingerprint=record.fingerprint,
        generations=record.generations,
    )
    return Request({**request.scope, RECORD: own})


async def _produce(request: Request, work: Work, answer: Answer[Head]) -> None:
    """Write the answer to `request`; failures are answers, too."""
    record = record_of(request)
    try:
        response = await work(request)
        if isinstance(response, EventStream):
            answer.open(Head(response.status_code, response.told, stream=True))
            await response.divert(answer.write)
        else:
            headers = dict(response.headers)
            answer.open(Head(response.status_code, headers, stream=False))
            answer.write(bytes(response.body))
    except Exception as error:  # noqa: BLE001 - told to those who read, and logged if unexpected
        _fail(answer, record, error)
    finally:
        answer.error, answer.worth_keeping = record.error, record.started


def _fail(answer: Answer[Head], record: RequestRecord, error: Exception) -> None:
    refusal = refuse(error, started=record.started)
    record.error = refusal.code
    if refusal.code == "internal_error":
        log.error("A request failed", exc_info=error, extra={"request_id": record.request_id})
    if answer.head is None:
        headers = {**refusal.headers, "content-type": "application/json"}
        answer.open(Head(refusal.status, headers, stream=False))
        answer.write(refusal.body)
    else:
        answer.write(refusal.event())
