"""`POST /v1/completions`."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.access import principal_of
from server.api.body import ignored_header, read_model
from server.api.keyed import respond
from server.api.openai.head import AnswerHead, head_of
from server.api.openai.remote import LEGACY, RemoteStream, remote_whole
from server.api.openai.streaming import Writer, open_whole, stream, told_of, whole
from server.api.openai.wire import FINISH, LegacyLogprobs, encode
from server.api.parts import Parts
from server.api.schemas.completions import CompletionRequest
from server.api.strict import is_strict
from server.core.events import Delta, Finished, SampledLogprobs
from server.gateway.fallback import AnyGeneration
from server.gateway.generation import Batch, Generation
from server.gateway.remote.generation import RemoteGeneration
from server.gateway.spec import Forward, GenerationSpec, TextPrompt


def completions_router(parts: Parts) -> APIRouter:
    """Return the endpoint."""
    router = APIRouter()
    schema = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}

    @router.post("/v1/completions", response_model=None, openapi_extra=schema)
    async def completions(request: Request) -> Response:
        """Continue one or several prompts, at once or as a stream."""
        body = await read_model(request, CompletionRequest, parts.limits.write_timeout)
        spec, headers = _spec(parts, body, request)
        with_usage = body.include_usage()
        if body.stream:

            def writer(generation: AnyGeneration) -> Writer:
                if isinstance(generation, RemoteGeneration):
                    return RemoteStream(parts, spec, generation, LEGACY, with_usage=with_usage)
                head = head_of(parts, spec, generation)
                echo = _echo(spec, generation) if body.echo else None
                return CompletionStream(head, echo, with_usage=with_usage)

            return await respond(
                parts, request, lambda one: stream(parts, one, spec, writer, headers)
            )
        echo = bool(body.echo)
        return await respond(
            parts, request, lambda one: _answer(parts, one, spec, headers, echo=echo)
        )

    return router


def _spec(
    parts: Parts, body: CompletionRequest, request: Request
) -> tuple[GenerationSpec, dict[str, str]]:
    body.check()
    spec = GenerationSpec(
        request_id=f"cmpl-{uuid.uuid4().hex}",
        model=body.model,
        principal=principal_of(request),
        prompts=body.prompts(),
        max_tokens=body.max_tokens,
        n=body.n or 1,
        sampling=body.sampling(),
        stop=body.stops(),
        ignore_eos=bool(body.ignore_eos),
        logprobs=body.logprobs,
        reuse_prefix=body.cache_prompt is not False,
        output=body.output(),
        forward=Forward("completions", body.passed),
    )
    ignored = ignored_header(body.leftover(strict=is_strict(request, parts.limits)))
    return spec, ignored


def _echo(spec: GenerationSpec, generation: Generation) -> list[str]:
    """Return each choice's prompt as text."""
    tokenizer = generation.lease.tokenizer
    shown = [
        prompt.text
        if isinstance(prompt, TextPrompt)
        else tokenizer.decode(tokens, special=True).decode("utf-8", "replace")
        for prompt, tokens in zip(spec.prompts, generation.prompts, strict=True)
    ]
    return [shown[choice.prompt] for choice in generation.choices]


class CompletionStream:
    """Writes chunks: texts, finish reasons, usage."""

    def __init__(self, head: AnswerHead, echo: list[str] | None, *, with_usage: bool) -> None:
        """`echo`: a text per choice that comes before what is generated."""
        self._head = head
        self._with_usage = with_usage
        self._start = f"data: {encode({**head.fields, 'object': 'text_completion'})[:-1]}"
        self._end = ',"usage":null}\n\n' if with_usage else "}\n\n"
        self._echo = dict(enumerate(echo or ()))
        self._lists = [LegacyLogprobs(head.texts, 0) for _ in head.generation.choices]

    def write(self, batch: Batch) -> bytes:
        """Return the chunks for a batch; what is there for one choice becomes one chunk."""
        texts: dict[int, str] = {}
        logprobs: dict[int, list[SampledLogprobs]] = {}
        out: list[str] = []
        for choice, event in batch:
            if choice in self._echo:
                texts[choice] = self._echo.pop(choice)
            if isinstance(event, Delta):
                self._head.reasoning[choice].add(event.token_ids)
                texts[choice] = texts.get(choice, "") + event.text
                logprobs.setdefault(choice, []).extend(event.logprobs)
            elif isinstance(event, Finished):
                text, values = texts.pop(choice, ""), logprobs.pop(choice, [])
                out.append(self._chunk(choice, text, values, f'"{FINISH[event.reason]}"'))
        out += [
            self._chunk(choice, text, logprobs.get(choice, []), "null")
            for choice, text in texts.items()
            if text or logprobs.get(choice)
        ]
        return "".join(out).encode("utf-8", "replace")

    def end(self) -> bytes:
        """Return the usage chunk, if it was asked for."""
        if not self._with_usage:
            return b""
        return f'{self._start},"choices":[],"usage":{encode(self._head.usage())}}}\n\n'.encode()

    def _chunk(self, choice: int, text: str, logprobs: list[SampledLogprobs], reason: str) -> str:
        lists = encode(self._lists[choice].take(logprobs)) if logprobs else "null"
        return (
            f'{self._start},"choices":[{{"index":{choice},"text":{encode(text)},'
            f'"logprobs":{lists},"finish_reason":{reason}}}]{self._end}'
        )


async def _answer(
    parts: Parts, request: Request, spec: GenerationSpec, headers: dict[str, str], *, echo: bool
) -> Response:
    """Generate all choices and return the whole answer."""
    generation = await open_whole(parts, request, spec)
    if isinstance(generation, RemoteGeneration):
        told = told_of(generation, headers)
        return await remote_whole(parts, spec, generation, LEGACY, told)
    try:
        head = head_of(parts, spec, generation)
        count = len(generation.choices)
        texts = [[text] for text in _echo(spec, generation)] if echo else [[] for _ in range(count)]
        logprobs: list[list[SampledLogprobs]] = [[] for _ in range(count)]
        reasons = [""] * count
        async for batch in generation.events():
            for choice, event in batch:
                if isinstance(event, Delta):
                    head.reasoning[choice].add(event.token_ids)
                    texts[choice].append(event.text)
                    logprobs[choice] += event.logprobs
                elif isinstance(event, Finished):
                    reasons[choice] = FINISH[event.reason]
    finally:
        generation.close()
    choices: list[dict[str, Any]] = [
        {
            "index": choice,
            "text": "".join(texts[choice]),
            "logprobs": None
            if spec.logprobs is None
            else LegacyLogprobs(head.texts, 0).take(logprobs[choice]),
            "finish_reason": reasons[choice],
        }
        for choice in range(count)
    ]
    return whole(head, "text_completion", choices, headers)
