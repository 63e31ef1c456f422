"""What streams of both completion endpoints do alike: hold, queue comments, errors, the end."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from server.api.disconnect import unless_disconnected
from server.api.errors import refuse
from server.api.parts import Parts
from server.api.record import RequestRecord, record_of
from server.api.sse import EventStream
from server.gateway.generation import Batch, Generation
from server.gateway.spec import GenerationSpec

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """Turns events to chunks."""

    def write(self, batch: Batch) -> bytes:
        """Return the chunks for a batch; may be empty."""
        ...

    def end(self) -> bytes:
        """Return what comes after the last choice's end, before `[DONE]`."""
        ...


async def open_generation(parts: Parts, request: Request, spec: GenerationSpec) -> Generation:
    """Open it and note it in the request's record, so that it can be told of and closed."""
    generation = await parts.service.open(spec)
    record_of(request).generations.append(generation)
    return generation


async def stream(
    parts: Parts,
    request: Request,
    spec: GenerationSpec,
    writer: Callable[[Generation], Writer],
    headers: dict[str, str],
) -> Response:
    """Open a generation, wait for its first token, return the response that owns it from then on.

    The wait is bounded by the hold time: until then a failure still has an HTTP status.
    """

    async def work() -> Response:
        generation = await open_generation(parts, request, spec)
        try:
            chunks = writer(generation)
            first = await generation.first_events(parts.limits.stream_hold)
        except BaseException:
            generation.close()
            raise
        body = _body(parts, record_of(request), generation, chunks, first=first)
        return EventStream(
            body, generation.close, send_timeout=parts.limits.write_timeout, headers=headers
        )

    return await unless_disconnected(request.receive, work())


async def _body(
    parts: Parts,
    record: RequestRecord,
    generation: Generation,
    writer: Writer,
    *,
    first: bool,
) -> AsyncGenerator[bytes, None]:
    if not first:
        yield _comment(generation)
    try:
        async for batch in generation.events(parts.limits.comment_every):
            if not batch:
                yield _comment(generation)
            elif chunk := writer.write(batch):
                yield chunk
        yield writer.end() + DONE
    except Exception as error:
        refusal = refuse(error, started=True)
        record.error = refusal.code
        if refusal.code == "internal_error":
            log.exception("A stream failed", extra={"request_id": record.request_id})
        yield refusal.event()


def _comment(generation: Generation) -> bytes:
    """Tell the place in the line, or just that the server is at work."""
    status = generation.queue_status()
    if status is None:
        return b": processing\n\n"
    wait = "" if status.seconds is None else f", about {max(1, round(status.seconds))} s"
    return f": queued {status.position}/{status.waiting}{wait}\n\n".encode()
