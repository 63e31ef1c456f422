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
from server.api.fallback import fallback_allowed, fallback_comment, fallback_headers
from server.api.openai.head import AnswerHead
from server.api.openai.opening import Feed
from server.api.openai.wire import encode
from server.api.parts import Parts
from server.api.record import RequestRecord, record_of
from server.api.sse import EventStream
from server.core.errors import OnegpuError
from server.gateway.answers import Passing
from server.gateway.fallback import AnyGeneration, Course
from server.gateway.remote.generation import RemoteGeneration
from server.gateway.spec import GenerationSpec

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """Turns events to chunks."""

    def write(self, batch: Any) -> bytes:
        """Return the chunks for a batch; may be empty."""
        ...

    def end(self) -> bytes:
        """Return what comes after the last choice's end, before `[DONE]`."""
        ...


MakeWriter = Callable[[AnyGeneration], Writer]


async def open_whole(parts: Parts, request: Request, spec: GenerationSpec) -> AnyGeneration:
    """Open what an answer that is no stream is made of: it has its first token already."""
    return await _course(parts, request, spec).begun()


def whole(
    head: AnswerHead, kind: str, choices: Sequence[Mapping[str, Any]], headers: Mapping[str, str]
) -> Response:
    """Return an answer that is no stream."""
    body = {**head.fields, "object": kind, "choices": choices, "usage": head.usage()}
    content = encode({**body, **head.extension}).encode("utf-8", "replace")
    return Response(
        content, headers=told_of(head.generation, headers), media_type="application/json"
    )


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
    course = _course(parts, request, spec)
    until = asyncio.get_running_loop().time() + parts.limits.stream_hold
    feed = Feed(course)
    try:
        first = await feed.start(until)
        generation = feed.generation
        chunks = None if generation is None else writer(generation)
    except BaseException:
        feed.close()
        raise
    told = headers if generation is None else told_of(generation, headers)
    body = _body(parts, record_of(request), feed, writer, chunks, first=first)
    pause = parts.limits.write_timeout
    return EventStream(body, feed.close, send_timeout=pause, headers=told)


def _course(parts: Parts, request: Request, spec: GenerationSpec) -> Course:
    """Return the request's way to an answer; what it opens can be told of by the record."""
    record = record_of(request)
    record.windows = functools.partial(parts.service.windows, spec.principal)
    return parts.fallback.course(
        replace(
            spec,
            seconds=seconds_given(request, parts.clock),
            fingerprint=record.fingerprint,
            fallback=fallback_allowed(request),
        ),
        record.generations,
    )


async def _body(
    parts: Parts,
    record: RequestRecord,
    feed: Feed,
    make: MakeWriter,
    chunks: Writer | None,
    *,
    first: bool,
) -> AsyncGenerator[bytes, None]:
    """Write the stream: what is waited for, who answers instead, the answer."""
    every = parts.limits.comment_every
    try:
        if chunks is not None and not first:
            yield _comment(feed.opened)
        while True:
            if chunks is None:
                async for comment in _until_open(parts, feed):
                    yield comment
                chunks = make(feed.opened)
            try:
                async for batch in feed.opened.events(every):
                    if not batch:
                        yield _comment(feed.opened)
                    elif chunk := chunks.write(batch):
                        yield chunk
                yield chunks.end() + DONE
                return
            except OnegpuError as error:
                feed.replace(error)
                chunks = None
    except Exception as error:  # noqa: BLE001 - told in the stream, and logged if unexpected
        yield _failure(record, error)


async def _until_open(parts: Parts, feed: Feed) -> AsyncGenerator[bytes, None]:
    """Tell what is waited for until there is a generation, and then who answers instead."""
    while not await feed.within(0):
        yield _waiting(parts, feed.course)
        await feed.within(parts.limits.comment_every)
    if (stand_in := feed.opened.stand_in) is not None:
        yield fallback_comment(stand_in)


def _failure(record: RequestRecord, error: Exception) -> bytes:
    """Return the event that ends a stream with an error."""
    refusal = refuse(error, started=True)
    record.error = refusal.code
    if refusal.code == "internal_error":
        log.error("A stream failed", exc_info=error, extra={"request_id": record.request_id})
    return refusal.event()


def told_of(generation: AnyGeneration, headers: Mapping[str, str]) -> dict[str, str]:
    """Return `headers` with those that say what became of the request."""
    told = {**headers, **fallback_headers(generation.stand_in)}
    if isinstance(generation, RemoteGeneration):
        told.pop("x-ignored-fields", None)  # it was sent the whole body
    if dropped := generation.dropped_turns:
        told["x-onegpu-dropped-turns"] = str(dropped)
    return told


def _comment(generation: AnyGeneration) -> bytes:
    """Tell the place in the line, or just that the server is at work."""
    status = generation.queue_status()
    if status is None:
        return Passing(b": processing\n\n")
    wait = "" if status.seconds is None else f", about {max(1, round(status.seconds))} s"
    return Passing(f": queued {status.position}/{status.waiting}{wait}\n\n".encode())


def _waiting(parts: Parts, course: Course) -> bytes:
    """Tell how far the model is, as long as it is loaded."""
    host = course.loading
    if host is None:
        return Passing(b": processing\n\n")
    left = parts.service.hosts.loading(host).retry_after or 0
    return Passing(f": loading {host.progress():.0%}, about {max(1, round(left))} s\n\n".encode())
