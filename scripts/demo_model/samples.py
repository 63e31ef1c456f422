"""What one training example is, shared by every task generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from demo_model.template import NO_THOUGHT, render

END = "<|im_end|>"


@dataclass(frozen=True)
class Sample:
    """A chat and the answer to learn.

    ``answer`` may start with a ``<think>`` block. ``thinking`` is what the caller would pass as
    ``enable_thinking``: ``None`` leaves it out, ``False`` puts the empty thought into the prompt.
    """

    family: str
    messages: tuple[dict[str, Any], ...]
    answer: str
    tools: tuple[dict[str, Any], ...] = field(default=())
    thinking: bool | None = None

    def prompt(self) -> str:
        """The rendered chat up to where the model goes on."""
        return render(self.messages, self.tools, enable_thinking=self.thinking)

    def completion(self) -> str:
        """The text the model must produce, with the end-of-turn mark."""
        return self.answer + END

    def contents(self) -> list[str]:
        """Texts in the prompt that come from outside the template, in order of appearance."""
        return [str(m["content"]) for m in self.messages if m.get("content")]


def thought(text: str, answer: str) -> str:
    """An answer with a visible thought before it."""
    return f"<think>\n{text}\n</think>\n\n{answer}"


def without_thought(reply: str) -> str:
    """What is left of a reply once its ``<think>`` block is gone."""
    head, mark, tail = reply.partition("</think>")
    return (tail if mark else head).strip()


__all__ = ["END", "NO_THOUGHT", "Sample", "thought", "without_thought"]
