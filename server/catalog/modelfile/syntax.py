"""A Modelfile's text, cut into instructions with their places. Knows nothing of their meaning.

The rules are those of Ollama's parser (parser/parser.go): an instruction begins a line, in any
case; a comment is a line of its own; a value ends with its line, unless it begins with a quotation
mark: then it ends with the line that ends with the mark. There are no escapes.
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from server.core.errors import ConfigError

INSTRUCTIONS = (
    "FROM",
    "PARAMETER",
    "SYSTEM",
    "TEMPLATE",
    "ADAPTER",
    "MESSAGE",
    "LICENSE",
    "TOOLS",
    "REQUIRES",
    "RENDERER",
    "PARSER",
    "DRAFT",
)
_KEYED = {"PARAMETER": "a parameter's name", "MESSAGE": "a role (system, user or assistant)"}
_PROSE = ("SYSTEM", "TEMPLATE", "MESSAGE", "LICENSE")
_WORD = re.compile(r"[A-Za-z]+")
_KEY = re.compile(r"[A-Za-z0-9_]+")
_GAP = re.compile(r"[ \t]*")
_SWALLOWED = re.compile(rf"^(?:{'|'.join(INSTRUCTIONS)})[ \t]", re.MULTILINE)
_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. Offsets count characters from the start of the text."""

    name: str
    """In capitals."""
    offset: int
    key: str
    """A parameter's name or a message's role, as written; empty for other instructions."""
    key_offset: int
    value: str
    """Without the quotation marks around it."""
    value_offset: int
    """Of the first character of `value`."""
    quoted: bool


class Source:
    """A text that can say where in it something is wrong."""

    def __init__(self, text: str, origin: str) -> None:
        """`origin`: the file's path, or what stands for it."""
        self.text = text.replace("\r\n", "\n").replace("\r", "\n")
        self.origin = origin

    def place(self, offset: int) -> str:
        """`origin:line:column`, both counted from 1."""
        before = self.text[:offset]
        line = before.count("\n") + 1
        return f"{self.origin}:{line}:{offset - (before.rfind(chr(10)) + 1) + 1}"

    def fail(self, offset: int, message: str) -> ConfigError:
        """Return the error to raise."""
        return ConfigError(f"{self.place(offset)}: {message}")

    def line_end(self, offset: int) -> int:
        """Offset of the end of the line that `offset` is in."""
        end = self.text.find("\n", offset)
        return len(self.text) if end < 0 else end


def decode(data: bytes, origin: str) -> str:
    """Text of a file: UTF-8, or UTF-16 with a byte order mark. Raises `ConfigError`."""
    encoding, start = "utf-8", 0
    for bom, name in _BOMS.items():
        if data.startswith(bom):
            encoding, start = name, len(bom)
    try:
        return data[start:].decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: start + error.start].count(b"\n") + 1
        raise ConfigError(
            f"{origin}:{line}:1: this line is not {encoding}. Save it as UTF-8."
        ) from error


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def instructions(source: Source) -> list[Instruction]:
    """Cut the text. Raises `ConfigError` with the place."""
    found: list[Instruction] = []
    position, text = 0, source.text
    while position < len(text):
        if text[position] in " \t\n":
            position += 1
        elif text[position] == "#":
            position = source.line_end(position)
        else:
            instruction, position = _read(source, position, found)
            found.append(instruction)
    return found


def _read(source: Source, start: int, before: list[Instruction]) -> tuple[Instruction, int]:
    """Read the instruction at `start`; return it and where its last line ends."""
    word = _WORD.match(source.text, start)
    name = word[0].upper() if word else ""
    if name not in INSTRUCTIONS:
        raise _unknown(source, start, before)
    position = _gap(source, start + len(name), name, "a value")
    key, key_offset = "", position
    if name in _KEYED:
        match = _KEY.match(source.text, position)
        if match is None:
            raise source.fail(position, f"{name} needs {_KEYED[name]} here.")
        key = match[0]
        position = _gap(source, match.end(), f"{name} {key}", "a value")
    value, mark, end = _value(source, position)
    offset = position + len(mark)
    return Instruction(name, start, key, key_offset, value, offset, mark != ""), end


def _gap(source: Source, position: int, what: str, needed: str) -> int:
    """Step over the blanks before `needed`."""
    match = _GAP.match(source.text, position)
    end = match.end() if match else position
    if end == source.line_end(position):
        raise source.fail(position, f'{what} needs {needed} on the same line ("" for none).')
    if end == position:
        found = source.text[position]
        raise source.fail(position, f"{what} must be followed by a blank, not by {found!r}.")
    return end


def _value(source: Source, start: int) -> tuple[str, str, int]:
    """Return the value, the quotation mark around it if any, and the end of its last line."""
    text = source.text
    mark = '"""' if text.startswith('"""', start) else '"' if text[start] == '"' else ""
    end = source.line_end(start)
    if not mark:
        return text[start:end].rstrip(), mark, end
    line = start + len(mark)
    while not (last := text[line:end].rstrip()).endswith(mark):
        if end == len(text):
            raise _unclosed(source, start, mark)
        line, end = end + 1, source.line_end(end + 1)
    value = text[start + len(mark) : line + len(last) - len(mark)]
    if mark == '"' and (swallowed := _SWALLOWED.search(value)):
        place = source.place(start + 1 + swallowed.start())
        message = (
            f"the quotation mark opened here takes in the instruction at {place}. Close it on its own "
            'line, or put text of several lines between """ and """.'
        )
        raise source.fail(start, message)
    return value, mark, end


def _unclosed(source: Source, start: int, mark: str) -> ConfigError:
    inner = source.text.find(mark, start + len(mark))
    if inner >= 0:
        message = (
            f"{mark} is not closed: the {mark} at {source.place(inner)} does not end its line."
        )
    else:
        message = f"{mark} is opened here and never closed. Put {mark} at the end of the value."
    return source.fail(start, message)


def _unknown(source: Source, start: int, before: list[Instruction]) -> ConfigError:
    line = source.text[start : source.line_end(start)]
    word = (line.split(maxsplit=1) or [line])[0][:40]
    last = before[-1] if before else None
    if near := nearest(word.upper(), INSTRUCTIONS):
        hint = near
    elif last and last.name in _PROSE and not last.quoted:
        hint = (
            f'. If it belongs to the text of {last.name} above, put that text between """ and """'
        )
    else:
        hint = f". A line begins with one of {', '.join(INSTRUCTIONS)}, or with # for a comment"
    return source.fail(start, f"{word!r} is not an instruction{hint}.".replace("?.", "?"))
