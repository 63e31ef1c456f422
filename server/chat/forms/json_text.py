"""Pieces of JSON that arrive bit by bit: strings, and where a value ends."""

from __future__ import annotations

import re

_PLAIN = re.compile(r'[^"\\]*')
_FLAT = re.compile(r'[^"{}\[\]]*')
_HEX = "[0-9a-fA-F]"
_HIGH = f"[dD][89abAB]{_HEX}{{2}}"
_UNIT = re.compile(
    rf"(?P<plain>[^\\]+)|\\u(?P<high>{_HIGH})\\u(?P<low>[dD][c-fC-F]{_HEX}{{2}})"
    rf"|\\u(?P<code>{_HEX}{{4}})|\\(?P<short>.)",
    re.DOTALL,
)
_UNFINISHED = re.compile(
    rf"\\(?:u{_HEX}{{0,3}})?|\\u{_HIGH}(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?"
)
_SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def string_end(text: str, at: int) -> int:
    """Return where, from `at` on inside a string, its closing quote or an unfinished escape stands, or the length."""
    while True:
        found = _PLAIN.match(text, at)
        at = at if found is None else found.end()
        if not text.startswith("\\", at) or at + 1 == len(text):
            return at
        at += 2


class Unescaper:
    """Decodes the inside of a JSON string. What is no escape stays; half a surrogate pair becomes U+FFFD."""

    def __init__(self) -> None:
        self._rest = ""

    def push(self, text: str) -> str:
        """Take more text; return what it says, but for an escape that may go on."""
        text = self._rest + text
        said: list[str] = []
        at = 0
        for unit in _UNIT.finditer(text):
            if unit["plain"] is None and _UNFINISHED.fullmatch(text, at):
                break
            said.append(_decoded(unit))
            at = unit.end()
        self._rest = text[at:]
        return "".join(said)

    def close(self) -> str:
        """Return what the last escape says, as far as it came."""
        rest = self._rest + " "  # so that a backslash at its end has something to escape
        self._rest = ""
        return "".join(_decoded(unit) for unit in _UNIT.finditer(rest))[:-1]


def unescaped(text: str) -> str:
    """Decode the inside of a whole JSON string."""
    decoder = Unescaper()
    return decoder.push(text) + decoder.close()


class ValueEnd:
    """Finds the end of an object or array. Counts brackets, and takes strings for what they are."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False

    def find(self, text: str, at: int) -> tuple[int, bool]:
        """Return where what can be told from `at` on ends, and whether the value does."""
        while True:
            if self._in_string:
                at = string_end(text, at)
                if not text.startswith('"', at):
                    return at, False
                self._in_string = False
                at += 1
            found = _FLAT.match(text, at)
            at = at if found is None else found.end()
            if at == len(text):
                return at, False
            if text[at] == '"':
                self._in_string = True
            else:
                self._depth += 1 if text[at] in "{[" else -1
            at += 1
            if not self._in_string and self._depth == 0:
                return at, True


def _decoded(unit: re.Match[str]) -> str:
    if unit["plain"] is not None:
        return unit["plain"]
    if unit["high"] is not None:
        return bytes.fromhex(unit["high"] + unit["low"]).decode("utf-16-be")
    if unit["code"] is not None:
        code = int(unit["code"], 16)
        return "\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code)
    return _SHORT.get(unit["short"], unit[0])
