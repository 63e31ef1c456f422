"""What both completion endpoints do alike: hold, queue comments, errors, the end."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from server.api.deadline import seconds_given
from server.api.errors import refuse
from server.api.openai.head import AnswerHead
from server.api.openai.opening import Opening
from server.api.openai.wire import encode
from server.api.parts import Parts
from server.api.record import RequestRecord, record_of
from server.api.sse import EventStream
from server.gateway.answers import Passing
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


MakeWriter = Callable[[Generation], Writer]


async def open_generation(parts: Parts, request: Request, spec: GenerationSpec) -> Generation:
    """Open it and note it in the request's record, so that it can be told of and closed."""
    record = record_of(request)
    record.windows = functools.partial(parts.service.windows, spec.principal)
    seconds = seconds_given(request, parts.clock)
    generation = await parts.service.open(
        replace(spec, seconds=seconds, fingerprint=record.fingerprint)
    )
    record.generations.append(generation)
    return generation


def whole(
    head: AnswerHead, kind: str, choices: Sequence[Mapping[str, Any]], headers: Mapping[str, str]
) -> Response:
    """Return an answer that is no stream."""
    body = {**head.fields, "object": kind, "choices": choices, "usage": head.usage()}
    content = encode({**body, **head.extension}).encode("utf-8", "replace")
    told = {**headers, **_told(head.generation)}
    return Response(content, headers=told, media_type="application/json")


async def stream(
    parts: Parts,
    request: Request,
    spec: GenerationSpec,
    writer: MakeWriter,
    headers: dict[str, str],
) -> Response:
    """Open a generation, wait for its first token, return the response that owns it from then on.

    The wait is bounded by the hold time, that for the model's load included: until then a failure
    still has an HTTP status.
    """
    hold = parts.limits.stream_hold
    until = asyncio.get_running_loop().time() + hold
    if parts.service.ready(spec.model, spec.principal):
        generation = await open_generation(parts, request, spec)
    else:
        opening = Opening(open_generation(parts, request, spec))
        opened = await opening.within(hold)
        if opened is None:
            return _response(
                parts, _loading(parts, request, spec, opening, writer), opening.close, headers
            )
        generation = opened
    try:
        chunks = writer(generation)
        left = max(0.0, until - asyncio.get_running_loop().time())
        first = await generation.first_events(left)
    except BaseException:
        generation.close()
        raise
    body = _body(parts, record_of(request), generation, chunks, first=first)
    return _response(parts, body, generation.close, {**headers, **_told(generation)})


def _response(
    parts: Parts,
    body: AsyncGenerator[bytes, None],
    close: Callable[[], None],
    headers: Mapping[str, str],
) -> Response:
    return EventStream(body, close, send_timeout=parts.limits.write_timeout, headers=headers)


async def _loading(
    parts: Parts, request: Request, spec: GenerationSpec, opening: Opening, writer: MakeWriter
) -> AsyncGenerator[bytes, None]:
    """Tell how far the model is until the generation is open, then stream it."""
    record = record_of(request)
    generation = None
    try:
        while generation is None:
            yield _load_comment(parts, spec)
            generation = await opening.within(parts.limits.comment_every)
        chunks = writer(generation)
    except Exception as error:  # noqa: BLE001 - told in the stream, and logged if unexpected
        yield _failure(record, error)
        return
    async for part in _body(parts, record, generation, chunks, first=True):
        yield part


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
    except Exception as error:  # noqa: BLE001 - told in the stream, and logged if unexpected
        yield _failure(record, error)


def _failure(record: RequestRecord, error: Exception) -> bytes:
    """Return the event that ends a stream with an error."""
    refusal = refuse(error, started=True)
    record.error = refusal.code
    if refusal.code == "internal_error":
        log.error("A stream failed", exc_info=error, extra={"request_id": record.request_id})
    return refusal.event()


def _told(generation: Generation) -> dict[str, str]:
    """Return the headers that say what became of the request."""
    dropped = generation.dropped_turns
    return {"x-onegpu-dropped-turns": str(dropped)} if dropped else {}


def _comment(generation: Generation) -> bytes:
    """Tell the place in the line, or just that the server is at work."""
    status = generation.queue_status()
    if status is None:
        return Passing(b": processing\n\n")
    wait = "" if status.seconds is None else f", about {max(1, round(status.seconds))} s"
    return Passing(f": queued {status.position}/{status.waiting}{wait}\n\n".encode())


def _load_comment(parts: Parts, spec: GenerationSpec) -> bytes:
    """Tell how far the model is."""
    host = parts.service.router.pick(spec.model).host
    left = parts.service.hosts.loading(host).retry_after or 0
    return Passing(f": loading {host.progress():.0%}, about {max(1, round(left))} s\n\n".encode())
