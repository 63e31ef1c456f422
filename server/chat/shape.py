"""What an answer's text may consist of, and the parser that takes it apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.chat.reasoning import ReasoningSplitter
from server.chat.reply import ReplyParser, Tool, ToolForm
from server.chat.scanning import PlainParser


@dataclass(frozen=True, slots=True)
class ReplyShape:
    """Known before the answer begins; every choice has a parser of its own."""

    thinking: Literal["none", "possible", "inside"] = "none"
    """Whether the answer may begin with `<think>`, or the prompt has opened the block already."""
    form: ToolForm | None = None
    """None: nothing is a call."""
    tools: Sequence[Tool] = ()

    def parser(self) -> ReplyParser:
        """Return the parser of one answer."""
        rest = PlainParser() if self.form is None else self.form.parser(self.tools)
        if self.thinking == "none":
            return rest
        return ReasoningSplitter(rest, inside=self.thinking == "inside")
