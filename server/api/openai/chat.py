"""`POST /v1/chat/completions`."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.access import principal_of
from server.api.body import ignored_header, read_model
from server.api.keyed import respond
from server.api.openai.head import AnswerHead, head_of
from server.api.openai.remote import CHAT, RemoteStream, remote_whole
from server.api.openai.reply import message_of
from server.api.openai.streaming import Writer, open_whole, stream, told_of, whole
from server.api.openai.wire import encode
from server.api.parts import Parts
from server.api.schemas.chat import ChatRequest
from server.api.strict import is_strict
from server.core.events import Delta, Finished, SampledLogprobs
from server.gateway.fallback import AnyGeneration
from server.gateway.generation import Batch
from server.gateway.remote.generation import RemoteGeneration
from server.gateway.spec import Forward, GenerationSpec


def chat_router(parts: Parts) -> APIRouter:
    """Return the endpoint."""
    router = APIRouter()
    schema = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}

    @router.post("/v1/chat/completions", response_model=None, openapi_extra=schema)
    async def chat_completions(request: Request) -> Response:
        """Answer a chat, at once or as a stream."""
        body = await read_model(request, ChatRequest, parts.limits.write_timeout)
        spec, headers = _spec(parts, body, request)
        with_usage = body.include_usage()
        if body.stream:

            def writer(generation: AnyGeneration) -> Writer:
                if isinstance(generation, RemoteGeneration):
                    return RemoteStream(parts, spec, generation, CHAT, with_usage=with_usage)
                return ChatStream(head_of(parts, spec, generation), with_usage=with_usage)

            return await respond(
                parts, request, lambda one: stream(parts, one, spec, writer, headers)
            )
        return await respond(parts, request, lambda one: _answer(parts, one, spec, headers))

    return router


def _spec(
    parts: Parts, body: ChatRequest, request: Request
) -> tuple[GenerationSpec, dict[str, str]]:
    body.check()
    strict = is_strict(request, parts.limits)
    spec = GenerationSpec(
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        model=body.model,
        principal=principal_of(request),
        prompts=[body.prompt()],
        max_tokens=body.output_limit(),
        n=body.n or 1,
        sampling=body.sampling(),
        stop=body.stops(),
        ignore_eos=bool(body.ignore_eos),
        logprobs=body.top(),
        reuse_prefix=body.cache_prompt is not False,
        output=body.output(),
        tool_choice=body.choice(),
        thinking_budget=body.thinking(),
        strict=strict,
        forward=Forward("chat/completions", body.passed),
    )
    ignored = ignored_header(body.leftover(strict=strict))
    return spec, ignored


class ChatStream:
    """Writes chunks in the order of the contract: role, deltas, finish reason, usage.

    The constant parts of a chunk are encoded once; a delta costs one JSON string.
    """

    def __init__(self, head: AnswerHead, *, with_usage: bool) -> None:
        """`with_usage`: a last chunk with token counts, and `usage: null` on all before it."""
        self._head = head
        self._with_usage = with_usage
        start = encode({**head.fields, "object": "chat.completion.chunk"})[:-1]
        self._start = f"data: {start}"
        self._end = ',"usage":null}\n\n' if with_usage else "}\n\n"
        self._open_end = f',"finish_reason":null}}]{self._end}'
        count = len(head.generation.choices)
        self._openings = [f'{self._start},"choices":[{{"index":{i},"delta":' for i in range(count)]
        self._begun = [False] * count

    def write(self, batch: Batch) -> bytes:
        """Return the chunks for a batch; what is there for one choice becomes one chunk."""
        texts: dict[int, str] = {}
        logprobs: dict[int, list[SampledLogprobs]] = {}
        out: list[str] = []
        replies = self._head.replies
        for choice, event in batch:
            if isinstance(event, Delta):
                self._head.reasoning[choice].add(event.token_ids)
                texts[choice] = texts.get(choice, "") + event.text
                if event.logprobs:
                    logprobs.setdefault(choice, []).extend(event.logprobs)
            elif isinstance(event, Finished):
                reply = replies[choice]
                deltas = [*reply.push(texts.pop(choice, "")), *reply.close()]
                out += self._deltas(choice, deltas, logprobs.pop(choice, []))
                reason = reply.finish(event)
                out.append(
                    f'{self._role(choice)}{self._openings[choice]}{{}},"logprobs":null,'
                    f'"finish_reason":"{reason}"}}]{self._end}'
                )
        for choice, text in texts.items():
            out += self._deltas(choice, replies[choice].push(text), logprobs.get(choice, []))
        return "".join(out).encode("utf-8", "replace")

    def end(self) -> bytes:
        """Return the usage chunk, if it was asked for."""
        if not self._with_usage:
            return b""
        return f'{self._start},"choices":[],"usage":{encode(self._head.usage())}}}\n\n'.encode()

    def _deltas(
        self, choice: int, deltas: list[dict[str, Any]], logprobs: list[SampledLogprobs]
    ) -> list[str]:
        """Return a chunk for each; the first one has what is told of the tokens."""
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        if not deltas:
            return []
        opening, end = self._openings[choice], self._open_end
        out = [self._role(choice)]
        shown = encode({"content": self._head.texts.chat(logprobs)}) if logprobs else "null"
        for delta in deltas:
            out.append(f'{opening}{encode(delta)},"logprobs":{shown}{end}')
            shown = "null"
        return out

    def _role(self, choice: int) -> str:
        """Return the chunk that opens a choice, the first time."""
        if self._begun[choice]:
            return ""
        opening = self._openings[choice]
        if self._head.extension and not any(self._begun):
            opening = f"{self._start},{encode(self._head.extension)[1:-1]}" + opening.removeprefix(
                self._start
            )
        self._begun[choice] = True
        return f'{opening}{{"role":"assistant","content":""}},"logprobs":null{self._open_end}'


async def _answer(
    parts: Parts, request: Request, spec: GenerationSpec, headers: dict[str, str]
) -> Response:
    """Generate all choices and return the whole answer."""
    generation = await open_whole(parts, request, spec)
    if isinstance(generation, RemoteGeneration):
        told = told_of(generation, headers)
        return await remote_whole(parts, spec, generation, CHAT, told)
    try:
        head = head_of(parts, spec, generation)
        count = len(generation.choices)
        deltas: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        logprobs: list[list[SampledLogprobs]] = [[] for _ in range(count)]
        reasons = [""] * count
        async for batch in generation.events():
            for choice, event in batch:
                if isinstance(event, Delta):
                    head.reasoning[choice].add(event.token_ids)
                    deltas[choice] += head.replies[choice].push(event.text)
                    logprobs[choice] += event.logprobs
                elif isinstance(event, Finished):
                    deltas[choice] += head.replies[choice].close()
                    reasons[choice] = head.replies[choice].finish(event)
    finally:
        generation.close()
    choices = [
        {
            "index": choice,
            "message": message_of(deltas[choice]),
            "logprobs": None
            if spec.logprobs is None
            else {"content": head.texts.chat(logprobs[choice]), "refusal": None},
            "finish_reason": reasons[choice],
        }
        for choice in range(count)
    ]
    return whole(head, "chat.completion", choices, headers)
