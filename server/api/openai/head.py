"""What every part of one answer carries: id, time, model, token counts."""

from __future__ import annotations

from typing import Any

from server.api.limits import ReasoningField
from server.api.openai.reply import Reply
from server.api.openai.wire import TokenTexts, usage
from server.api.parts import Parts
from server.chat.reasoning import ReasoningCounter
from server.engine.interface import Tokenizer
from server.gateway.generation import Generation
from server.gateway.spec import GenerationSpec


class AnswerHead:
    """What all chunks of one answer share."""

    def __init__(
        self,
        request_id: str,
        created: int,
        generation: Generation,
        fingerprint: str,
        tokenizer: Tokenizer,
        reasoning: ReasoningField,
    ) -> None:
        """`created`: Unix seconds; `reasoning`: the field that thoughts go to."""
        self.generation = generation
        self.fields: dict[str, Any] = {
            "id": request_id,
            "created": created,
            "model": generation.model,
            "system_fingerprint": fingerprint,
        }
        self.extension: dict[str, Any] = {}
        """What this server adds to an answer or its first chunk; usually nothing."""
        if generation.dropped_turns:
            self.extension["onegpu"] = {"dropped_turns": generation.dropped_turns}
        self.texts = TokenTexts(tokenizer)
        self.replies = [
            Reply(generation.shapes[choice.prompt], reasoning) for choice in generation.choices
        ]
        """By choice: what takes its text apart."""
        self.reasoning = [
            ReasoningCounter(
                tokenizer.marker_tokens, tokenizer.pieces, generation.prompts[choice.prompt]
            )
            for choice in generation.choices
        ]

    def usage(self) -> dict[str, Any]:
        """Token counts, reasoning included."""
        return usage(self.generation, sum(counter.count for counter in self.reasoning))


def head_of(parts: Parts, spec: GenerationSpec, generation: Generation) -> AnswerHead:
    """Return what an answer to `spec` carries everywhere."""
    lease, created = generation.lease, int(parts.clock.wall())
    return AnswerHead(
        spec.request_id,
        created,
        generation,
        lease.info.fingerprint,
        lease.tokenizer,
        parts.limits.reasoning_field,
    )
