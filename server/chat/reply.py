"""What an answer's text consists of, once it is taken apart: reasoning, content, calls."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Tool = Mapping[str, Any]
"""A tool in the OpenAI form: `{"type": "function", "function": {"name", "description", "parameters", "strict"}}`."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallOpened:
    """A call begins. Calls are counted from 0 and do not overlap."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Part = Reasoning | Content | CallOpened | CallArguments


class ReplyParser(Protocol):
    """Takes one answer apart while it comes, however it is cut."""

    def push(self, text: str) -> list[Part]:
        """Take more text; return what is certain by now. Neighbours of one kind are one part."""
        ...

    def close(self) -> list[Part]:
        """The text has ended: return what was held back."""
        ...


class ToolForm(Protocol):
    """How a model writes its calls, as its template has taught it."""

    name: str
    opening: str
    """The tag that begins each call."""

    def parser(self, tools: Sequence[Tool]) -> ReplyParser:
        """Return a parser of an answer's content; `tools` tell the types of arguments."""
        ...

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        special: Container[str],
        enforce: Callable[[Tool], bool],
        many: bool,
        only: str | None = None,
    ) -> str:
        """Return llguidance's Lark for one call, or with `many` for one or more, from the opening tag on.

        `only`: the name of the tool to call; the others are there for their places in the request.
        `special`: the vocabulary's special tokens; `enforce`: whether a tool's schema binds its
        arguments. Raises `InvalidRequest` naming the tool whose schema cannot be enforced.
        """
        ...
