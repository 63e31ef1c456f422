"""Parts of an answer as OpenAI's clients read them: deltas of a stream, or a whole message."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from server.api.limits import ReasoningField
from server.api.openai.wire import FINISH
from server.chat.reply import CallArguments, CallOpened, Content, Part, Reasoning
from server.chat.shape import ReplyShape
from server.core.events import Finished, FinishReason

_NAMES: dict[ReasoningField, tuple[str, ...]] = {
    "reasoning_content": ("reasoning_content",),
    "reasoning": ("reasoning",),
    "both": ("reasoning_content", "reasoning"),
}


class Reply:
    """Takes one choice's text apart."""

    def __init__(self, shape: ReplyShape, reasoning: ReasoningField) -> None:
        """`reasoning`: the field that thoughts go to."""
        self._parser = shape.parser()
        self._names = _NAMES[reasoning]
        self.calls = 0

    def push(self, text: str) -> list[dict[str, Any]]:
        """Return deltas for more text."""
        return [self._delta(part) for part in self._parser.push(text)]

    def close(self) -> list[dict[str, Any]]:
        """Return deltas for what was held back: the text has ended."""
        return [self._delta(part) for part in self._parser.close()]

    def finish(self, end: Finished) -> str:
        """Return the finish reason: calls are one only where nothing cut the answer off, a stop string neither."""
        natural = end.reason is FinishReason.STOP and end.stop_match is None
        return "tool_calls" if self.calls and natural else FINISH[end.reason]

    def _delta(self, part: Part) -> dict[str, Any]:
        match part:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return dict.fromkeys(self._names, text)
            case CallOpened(index, name):
                self.calls += 1
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": _call_id(), "type": "function", "function": function}
                return {"tool_calls": [call]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def message_of(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that deltas add up to."""
    texts: dict[str, list[str]] = {}
    calls: list[dict[str, Any]] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        for name, value in delta.items():
            if name != "tool_calls":
                texts.setdefault(name, []).append(value)
                continue
            for call in value:
                if "id" in call:
                    calls.append(call)
                    arguments.append([])
                else:
                    arguments[call["index"]].append(call["function"]["arguments"])
    content = "".join(texts.pop("content", ()))
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not content else content,
        "refusal": None,
    }
    message.update({name: "".join(pieces) for name, pieces in texts.items()})
    if calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["function"]["name"], "arguments": "".join(pieces)},
            }
            for call, pieces in zip(calls, arguments, strict=True)
        ]
    return message


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
