"""A remote's answer in this server's own form: its text and calls, our id, order and model's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import Response

from server.api.openai.wire import encode
from server.api.parts import Parts
from server.gateway.remote.generation import RemoteGeneration
from server.gateway.remote.wire import RemoteBatch, RemoteDelta
from server.gateway.spec import GenerationSpec

CHAT = "chat.completion"
LEGACY = "text_completion"


class RemoteStream:
    """Writes chunks in the order of the contract."""

    def __init__(
        self,
        parts: Parts,
        spec: GenerationSpec,
        generation: RemoteGeneration,
        kind: str,
        *,
        with_usage: bool,
    ) -> None:
        """`kind`: the object that a whole answer is. `with_usage`: a last chunk with token counts."""
        self._generation = generation
        self._chat = kind == CHAT
        self._with_usage = with_usage
        self._logprobs = spec.logprobs is not None
        self._head = _head(parts, spec, generation, f"{CHAT}.chunk" if self._chat else LEGACY)
        self._begun: set[int] = set()

    def write(self, batch: RemoteBatch) -> bytes:
        """Return the chunks for a batch."""
        out: list[str] = []
        for choice, event in batch:
            if self._chat and choice not in self._begun:
                self._begun.add(choice)
                out.append(self._chunk(choice, {"role": "assistant", "content": ""}, None, None))
            if isinstance(event, RemoteDelta):
                out.append(self._chunk(choice, event.fields, event.logprobs, None))
            else:
                empty: Mapping[str, Any] = {} if self._chat else {"text": ""}
                out.append(self._chunk(choice, empty, None, event.reason))
        return "".join(out).encode("utf-8", "replace")

    def end(self) -> bytes:
        """Return the usage chunk, if it was asked for."""
        if not self._with_usage:
            return b""
        last = {**self._head, "choices": [], "usage": usage(self._generation)}
        return f"data: {encode(last)}\n\n".encode()

    def _chunk(
        self,
        choice: int,
        fields: Mapping[str, Any],
        logprobs: Mapping[str, Any] | None,
        reason: str | None,
    ) -> str:
        shown = {"delta": fields} if self._chat else fields
        told = {
            "index": choice,
            **shown,
            "logprobs": logprobs if self._logprobs else None,
            "finish_reason": reason,
        }
        document: dict[str, Any] = {**self._head, "choices": [told]}
        if self._with_usage:
            document["usage"] = None
        return f"data: {encode(document)}\n\n"


async def remote_whole(
    parts: Parts,
    spec: GenerationSpec,
    generation: RemoteGeneration,
    kind: str,
    headers: Mapping[str, str],
) -> Response:
    """Return an answer that is no stream, and close the generation."""
    deltas: dict[int, RemoteDelta] = {}
    reasons: dict[int, str] = {}
    try:
        async for batch in generation.events():
            for choice, event in batch:
                if isinstance(event, RemoteDelta):
                    deltas[choice] = event
                else:
                    reasons[choice] = event.reason
    finally:
        generation.close()
    choices = list(_choices(spec, kind, deltas, reasons))
    head = _head(parts, spec, generation, kind)
    content = encode({**head, "choices": choices, "usage": usage(generation)})
    return Response(
        content.encode("utf-8", "replace"), headers=dict(headers), media_type="application/json"
    )


def _choices(
    spec: GenerationSpec, kind: str, deltas: Mapping[int, RemoteDelta], reasons: Mapping[int, str]
) -> Iterator[dict[str, Any]]:
    for choice in sorted(reasons):
        fields = deltas[choice].fields
        if kind == CHAT:
            message = {"role": "assistant", "content": None, "refusal": None, **fields}
            if "tool_calls" not in fields and message["content"] is None:
                message["content"] = ""
            shown: Mapping[str, Any] = {"message": message}
        else:
            shown = {"text": fields.get("text", "")}
        yield {
            "index": choice,
            **shown,
            "logprobs": None if spec.logprobs is None else deltas[choice].logprobs,
            "finish_reason": reasons[choice],
        }


def usage(generation: RemoteGeneration) -> dict[str, Any] | None:
    """Token counts as the remote told them; None where it did not."""
    told = generation.usage
    if told is None:
        return None
    return {
        "prompt_tokens": told.prompt,
        "completion_tokens": told.completion,
        "total_tokens": told.prompt + told.completion,
        "prompt_tokens_details": {"cached_tokens": told.cached},
        "completion_tokens_details": {"reasoning_tokens": told.reasoning},
    }


def _head(
    parts: Parts, spec: GenerationSpec, generation: RemoteGeneration, kind: str
) -> dict[str, Any]:
    return {
        "id": spec.request_id,
        "object": kind,
        "created": int(parts.clock.wall()),
        "model": generation.model,
        "system_fingerprint": None,
    }
