r"""`pattern`: ECMAScript's regular expressions, written anew for the compiler of grammars.

The two dialects read some texts differently (`[a[b]]`, `.`, `\w`), so nothing passes through as it
stands: what both can say is said in full, the rest is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from server.chat.json_schema.bounds import MAX_LENGTH
from server.chat.json_schema.refusal import Refused

_MAX_DEPTH = 50
_LAST = 0x10FFFF
_CONTROL = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_HEX = {"x": 2, "u": 4}
_COUNTED = re.compile(r"\{([0-9]+)(?:(,)([0-9]*))?\}")
_GROUP = re.compile(r"\?:|\?<[A-Za-z_$][\w$]*>")

Ranges = list[tuple[int, int]]
"""Code points, from and to, both included."""

_CLASSES: dict[str, Ranges] = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [
        *((9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
        *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)),
        (0xFEFF, 0xFEFF),
    ],
}
_UNWRITTEN: Ranges = [(0, 7), (11, 11), (14, 31), (127, 127)]
"""Control characters: JSON would need `\\u` escapes, which are not admitted in answers."""
_DOT: Ranges = [(10, 10), (13, 13), (0x2028, 0x2029)]


def translated(pattern: str, keyword: str = "pattern") -> str:
    """Return it in Rust's dialect. Raises `Refused` for what a grammar cannot follow."""
    reader = _Reader(pattern, keyword)
    written = reader.alternatives(0)
    if reader.rest:
        raise reader.refused("has a ')' too many")
    return written


class _Reader:
    """One pass over a pattern, from left to right."""

    def __init__(self, pattern: str, keyword: str) -> None:
        self._pattern = pattern
        self._keyword = keyword
        self._next = 0

    @property
    def rest(self) -> bool:
        return self._next < len(self._pattern)

    def refused(self, why: str) -> Refused:
        return Refused(f"'{self._keyword}' {why} near character {self._next + 1}")

    def alternatives(self, depth: int) -> str:
        """Read up to the end or the group's ')', which stays."""
        if depth > _MAX_DEPTH:
            raise self.refused(f"has groups nested more than {_MAX_DEPTH} deep")
        written = [""]
        while self.rest and self._peek() != ")":
            if self._peek() == "|":
                self._next += 1
                written.append("")
            else:
                written[-1] += self._term(depth)
        return "|".join(written)

    def _term(self, depth: int) -> str:
        here = self._take()
        if here in "^$":
            return here
        if here in "*+?":
            raise self.refused(f"has a {here!r} with nothing to repeat")
        return self._atom(here, depth) + self._repetition()

    def _atom(self, here: str, depth: int) -> str:
        if here == "(":
            return self._group(depth)
        if here == "[":
            return self._listed()
        if here == ".":
            return self._written(_without(_DOT))
        if here == "\\":
            return self._written(self._escape())
        if here == "{" and _COUNTED.match(self._pattern, self._next - 1):
            raise self.refused("has a '{' with nothing to repeat")
        return self._written([(ord(here), ord(here))])

    def _group(self, depth: int) -> str:
        kind = _GROUP.match(self._pattern, self._next)
        if kind is not None:
            self._next = kind.end()
        elif self._peek() == "?":
            raise self.refused("looks around or sets flags, which is not supported,")
        inner = self.alternatives(depth + 1)
        if self._take() != ")":
            raise self.refused("has a group that does not end")
        return f"(?:{inner})"

    def _repetition(self) -> str:
        written = ""
        if self._peek() in ("*", "+", "?"):
            written = self._take()
        elif counted := _COUNTED.match(self._pattern, self._next):
            self._next = counted.end()
            written = self._counted(counted)
        if written and self._peek() == "?":
            self._next += 1  # how eagerly it repeats does not change what it admits
        if written and (self._peek() in ("*", "+", "?") or self._at_count()):
            raise self.refused("repeats a repetition")
        return written

    def _at_count(self) -> bool:
        return _COUNTED.match(self._pattern, self._next) is not None

    def _counted(self, counted: re.Match[str]) -> str:
        least, comma, most = counted.groups()
        if max(len(least), len(most or "")) > len(str(MAX_LENGTH)):
            raise self.refused(f"repeats more than {MAX_LENGTH} times")
        low = int(least)
        high = low if comma is None else int(most) if most else None
        if max(low, high or 0) > MAX_LENGTH:
            raise self.refused(f"repeats more than {MAX_LENGTH} times")
        if high is not None and high < low:
            raise self.refused("has a repetition whose bounds are in the wrong order")
        return f"{{{low},{'' if high is None else high}}}"

    def _listed(self) -> str:
        negated = self._peek() == "^"
        self._next += negated
        ranges: Ranges = []
        while (here := self._take()) != "]":
            low = self._member(here)
            dash = self._pattern[self._next : self._next + 1] == "-"
            if not dash or self._pattern[self._next + 1 : self._next + 2] in ("]", ""):
                ranges += low
                continue
            self._next += 1
            high = self._member(self._take())
            if not _single(low) or not _single(high):
                raise self.refused("has a range between classes")
            if high[0][0] < low[0][0]:
                raise self.refused("has a range in the wrong order")
            ranges.append((low[0][0], high[0][0]))
        return self._written(_without(ranges) if negated else ranges)

    def _written(self, ranges: Ranges) -> str:
        kept = _class(ranges)
        if not kept:
            raise self.refused("matches nothing that an answer can hold")
        return kept

    def _member(self, here: str) -> Ranges:
        if here != "\\":
            return [(ord(here), ord(here))]
        if self._peek() == "b":
            self._next += 1
            return [(8, 8)]
        return self._escape()

    def _escape(self) -> Ranges:
        here = self._take()
        if here.lower() in _CLASSES:
            known = _CLASSES[here.lower()]
            return known if here.islower() else _without(known)
        code = self._code(here)
        if not 0 <= code <= _LAST or 0xD800 <= code <= 0xDFFF:
            raise self.refused("names no character")
        return [(code, code)]

    def _code(self, here: str) -> int:
        if here in _CONTROL and not (here == "0" and self._peek().isdecimal()):
            return _CONTROL[here]
        if here == "c" and self._peek().isascii() and self._peek().isalpha():
            return ord(self._take()) % 32
        if here in _HEX:
            return self._hex(here)
        if not here.isalnum() and here != "_":
            return ord(here)
        raise self.refused(f"has '\\{here}', which is not supported,")

    def _hex(self, here: str) -> int:
        braced = re.compile(r"\{([0-9a-fA-F]{1,6})\}").match(self._pattern, self._next)
        if here == "u" and braced:
            self._next = braced.end()
            return int(braced[1], 16)
        digits = f"[0-9a-fA-F]{{{_HEX[here]}}}"
        plain = re.compile(digits).match(self._pattern, self._next)
        if plain is None:
            raise self.refused(f"has '\\{here}' without its digits")
        self._next = plain.end()
        code = int(plain[0], 16)
        low = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self._pattern, self._next)
        if 0xD800 <= code < 0xDC00 and low:
            self._next = low.end()
            return 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        return code

    def _peek(self) -> str:
        return self._pattern[self._next : self._next + 1]

    def _take(self) -> str:
        here = self._peek()
        if not here:
            raise self.refused("ends too early")
        self._next += 1
        return here


def _single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _without(ranges: Ranges) -> Ranges:
    """All code points but these."""
    kept, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            kept.append((start, low - 1))
        start = max(start, high + 1)
    return [*kept, (start, _LAST)] if start <= _LAST else kept


def _class(ranges: Ranges) -> str:
    kept = _without([*_without(ranges), *_UNWRITTEN])
    if _single(kept):
        return _character(kept[0][0])
    return "" if not kept else "[" + "".join(_span(low, high) for low, high in kept) + "]"


def _span(low: int, high: int) -> str:
    # No range may begin or end inside the surrogates.
    low = 0xE000 if 0xD800 <= low <= 0xDFFF else low
    high = 0xD7FF if 0xD800 <= high <= 0xDFFF else high
    if low > high:
        return ""
    return _character(low) if low == high else f"{_character(low)}-{_character(high)}"


def _character(code: int) -> str:
    letter = chr(code)
    return letter if letter.isascii() and letter.isalnum() else f"\\x{{{code:x}}}"


def text_but(characters: Iterable[str]) -> str:
    """Return, in Rust's dialect, any one character but these."""
    return _class(_without([(ord(character), ord(character)) for character in characters]))


def spelt(text: str) -> str:
    """Return, in Rust's dialect, exactly this text."""
    return "".join(_character(ord(character)) for character in text)


def anything(least: int, most: int | None) -> str:
    """Return, in Rust's dialect, all texts of that many characters."""
    return f"^{text_but(())}{{{least},{'' if most is None else most}}}$"


ANYTHING = text_but(()) + "*"
