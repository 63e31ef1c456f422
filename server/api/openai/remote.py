"""A remote's answer in this server's own form: its text and calls, our id, order and model's name."""

from __future__ import annotations

from collections.abc import Mapping
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
    found: dict[int, _Joined] = {}
    try:
        async for batch in generation.events():
            for choice, event in batch:
                joined = found.setdefault(choice, _Joined())
                if isinstance(event, RemoteDelta):
                    joined.add(event)
                else:
                    joined.reason = event.reason
    finally:
        generation.close()
    choices = [
        {
            "index": choice,
            **({"message": found[choice].message()} if kind == CHAT else found[choice].text()),
            "logprobs": None if spec.logprobs is None else found[choice].logprobs,
            "finish_reason": found[choice].reason,
        }
        for choice in sorted(found)
    ]
    head = _head(parts, spec, generation, kind)
    content = encode({**head, "choices": choices, "usage": usage(generation)})
    return Response(
        content.encode("utf-8", "replace"), headers=dict(headers), media_type="application/json"
    )


class _Joined:
    """One choice, put together again from its parts."""

    def __init__(self) -> None:
        self.reason = ""
        self.logprobs: dict[str, Any] | None = None
        self._texts: dict[str, list[str]] = {}
        self._calls: list[tuple[Mapping[str, Any], list[str]]] = []
        """Calls as they began, in order, with the parts of their arguments."""

    def add(self, delta: RemoteDelta) -> None:
        """Take the next part."""
        for name, value in delta.fields.items():
            if name != "tool_calls":
                self._texts.setdefault(name, []).append(value)
                continue
            for call in value:
                if "id" in call:  # numbers count up from 0
                    self._calls.append((call, []))
                self._calls[call["index"]][1].append(call["function"]["arguments"])
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or {}
            for name, value in delta.logprobs.items():
                known = self.logprobs.setdefault(name, None)
                if isinstance(value, list):
                    self.logprobs[name] = [*value] if known is None else known
                    if known is not None:
                        known.extend(value)

    def text(self) -> dict[str, Any]:
        """Return what a completion is."""
        return {"text": "".join(self._texts.get("text", ()))}

    def message(self) -> dict[str, Any]:
        """Return what a chat's message is."""
        texts = {name: "".join(given) for name, given in self._texts.items()}
        message = {"role": "assistant", "content": None if self._calls else "", "refusal": None}
        if not self._calls:
            return {**message, **texts}
        calls = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["function"]["name"], "arguments": "".join(arguments)},
            }
            for call, arguments in self._calls
        ]
        return {**message, **texts, "tool_calls": calls}


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
