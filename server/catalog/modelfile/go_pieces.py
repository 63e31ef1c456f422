"""A Go template cut into text and tags, and tags into tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.catalog.modelfile.go_tree import GoTemplateError, Text

_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<raw>`[^`]*`)
    |(?P<number>[+-]?\d[\w.]*)
    |(?P<field>(?:\.[A-Za-z_]\w*)+)
    |(?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<mark>:=|[=|(),.])""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"(?:-[ \t\r\n]+)?/\*.*?\*/([ \t\r\n]+-)?\}\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Token:
    """A word of a tag. `kind` is the name of its group in the pattern."""

    kind: str
    text: str
    offset: int
    spaced: bool
    """White space stands before it."""


@dataclass(frozen=True, slots=True)
class Tag:
    """What stands between double braces."""

    offset: int
    tokens: tuple[Token, ...]


def pieces(source: str) -> list[Text | Tag]:
    """Cut into text and tags, the text trimmed where a tag asks for it."""
    found: list[Text | Tag] = []
    position, trim = 0, False
    while True:
        start = source.find("{{", position)
        text = source[position : start if start >= 0 else len(source)]
        text = text.lstrip(_SPACE) if trim else text
        inner = start + 2
        if (
            start >= 0
            and source[inner : inner + 1] == "-"
            and source[inner + 1 : inner + 2] in _SPACE
        ):
            text = text.rstrip(_SPACE)
        if text:
            found.append(Text(text))
        if start < 0:
            return found
        comment = _COMMENT.match(source, inner)
        if comment:
            position, trim = comment.end(), comment[1] is not None
        else:
            tag, position, trim = _tag(source, start)
            found.append(tag)


def _tag(source: str, start: int) -> tuple[Tag, int, bool]:
    """Read the tag at `start`; return it, where it ends, and whether it trims what follows."""
    tokens: list[Token] = []
    position, spaced = start + 2, False
    if source[position : position + 1] == "-" and source[position + 1 : position + 2] in _SPACE:
        position += 1
    while True:
        if source.startswith("}}", position):
            return Tag(start, tuple(tokens)), position + 2, False
        if spaced and source.startswith("-}}", position):
            return Tag(start, tuple(tokens)), position + 3, True
        match = _TOKEN.match(source, position)
        if match is None:
            if position >= len(source):
                raise GoTemplateError(start, "{{ is opened here and never closed.")
            raise GoTemplateError(position, f"{source[position]!r} is not understood here.")
        kind = match.lastgroup or ""
        if kind != "space":
            tokens.append(Token(kind, match[0], position, spaced))
        spaced = kind == "space"
        position = match.end()
