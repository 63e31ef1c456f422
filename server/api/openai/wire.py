"""JSON that chat and legacy completions have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from server.core.events import FinishReason, SampledLogprobs
from server.engine.interface import Tokenizer
from server.gateway.generation import Generation

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Compact JSON; for a plain string one C call."""

FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORTED: "stop",
}


def usage(generation: Generation, reasoning_tokens: int) -> dict[str, Any]:
    """Token counts of the whole request."""
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


class TokenTexts:
    """How tokens are shown beside their log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Control tokens are shown by their names."""
        self._tokenizer = tokenizer

    def piece(self, token: int) -> bytes:
        """Bytes of a token."""
        return self._tokenizer.decode([token], special=True)

    def shown(self, token: int) -> bytes:
        """Bytes that a token brings to the answer's text: none for control tokens."""
        return self._tokenizer.pieces[token]

    def chat(self, logprobs: Sequence[SampledLogprobs]) -> list[dict[str, Any]]:
        """Entries of `logprobs.content`."""
        return [
            {
                **self._entry(position.token_id, position.logprob),
                "top_logprobs": [self._entry(top.token_id, top.logprob) for top in position.top],
            }
            for position in logprobs
        ]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self.piece(token)
        return {
            "token": piece.decode("utf-8", "replace"),
            "logprob": finite(logprob),
            "bytes": list(piece),
        }


class LegacyLogprobs:
    """The parallel lists of legacy completions, for one choice."""

    def __init__(self, texts: TokenTexts, offset: int) -> None:
        """`offset`: characters of the choice's text that come before the first token."""
        self._texts = texts
        self._offset = offset

    def take(self, logprobs: Sequence[SampledLogprobs]) -> dict[str, Any]:
        """Lists for the next tokens; offsets count characters from the start of the text."""
        lists: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for position in logprobs:
            piece = self._texts.piece(position.token_id)
            lists["tokens"].append(piece.decode("utf-8", "replace"))
            lists["token_logprobs"].append(finite(position.logprob))
            lists["top_logprobs"].append(
                {
                    self._texts.piece(top.token_id).decode("utf-8", "replace"): finite(top.logprob)
                    for top in position.top
                }
            )
            lists["text_offset"].append(self._offset)
            # A character's first byte counts it; a token may hold only a later part of one.
            text = self._texts.shown(position.token_id)
            self._offset += sum(byte & 0xC0 != 0x80 for byte in text)
        return lists


def finite(logprob: float) -> float:
    """Return a number that JSON can carry."""
    return max(logprob, -9999.0)
