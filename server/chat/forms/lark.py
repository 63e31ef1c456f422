"""Pieces of llguidance's Lark grammars that both forms are made of."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence

from server.chat.forms.calls import CLOSING, OPENING
from server.chat.reply import Tool
from server.core.errors import InvalidRequest

_LONGEST = 256 * 1024
"""Characters of what may be called. No compiler takes more, so the rest of too many schemas is not even read."""


def literal(text: str) -> str:
    """Return a terminal that is `text`, which must not be empty."""
    return json.dumps(text)


def tag(text: str, special: Container[str]) -> str:
    """Return what stands for a tag: its token where the vocabulary has one."""
    return text if text in special else literal(text)


def param_of(index: int) -> str:
    """Return the request's field for the schema of a tool."""
    return f"tools[{index}].function.parameters"


def matching(pattern: str) -> str:
    """Return a terminal for texts in which `pattern` is found.

    It is as `check_schema` writes it, without a bare slash.
    """
    before = after = "(?s:.*)"
    if pattern.startswith("^"):
        pattern, before = pattern[1:], ""
    if pattern.endswith("$"):
        pattern, after = pattern[:-1], ""
    return f"/{before}(?:{pattern}){after}/"


def calls_grammar(
    tools: Sequence[tuple[int, Tool]], bodies: Iterable[str], *, special: Container[str], many: bool
) -> list[str]:
    """Return the lines for one or several calls, each of one of the tools' `bodies`.

    Raises `InvalidRequest` when those grow too long.
    """
    names = [f"tool_{index}" for index, _ in tools]
    lines = [
        "start: call (NL? call)*" if many else "start: call",
        f"call: {tag(OPENING, special)} NL? ({' | '.join(names)}) NL? {tag(CLOSING, special)}",
        'NL: "\\n"',
    ]
    left = _LONGEST
    for name, body in zip(names, bodies, strict=True):
        left -= len(body)
        if left < 0:
            raise InvalidRequest(
                f"The tools' schemas take more than {_LONGEST:,} characters as a grammar. "
                "Offer fewer tools or shorter schemas, or do not ask for them to be enforced.",
                param="tools",
            )
        lines.append(f"{name}: {body}")
    return lines
