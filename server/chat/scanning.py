"""What incremental parsers have in common: what must be held back, and parts that are put together."""

from __future__ import annotations

import re
from collections.abc import Iterable

from server.chat.reply import CallArguments, CallOpened, Content, Part

SPACE = " \t\r\n"
"""White space as JSON has it, and as models put it around tags."""
_SPACES = re.compile(f"[{SPACE}]*")


def skip_space(text: str, at: int) -> int:
    """Return where the white space from `at` on ends."""
    found = _SPACES.match(text, at)
    return at if found is None else found.end()


def tag_start(text: str, at: int, tags: Iterable[str]) -> int:
    """Return where, from `at` on, the longest unfinished tag begins that `text` ends in, or its length."""
    longest = max(map(len, tags)) - 1
    for start in range(max(at, len(text) - longest), len(text)):
        if any(tag.startswith(text[start:]) for tag in tags):
            return start
    return len(text)


class Parts:
    """Collects parts; neighbours of one kind become one."""

    def __init__(self) -> None:
        self._done: list[Part] = []
        self._pieces: list[str] = []
        self._call = -1  # whose arguments the pieces are; -1: they are content

    def content(self, text: str) -> None:
        """Add to the answer's text."""
        self._add(-1, text)

    def arguments(self, index: int, text: str) -> None:
        """Add to a call's arguments."""
        self._add(index, text)

    def opened(self, index: int, name: str) -> None:
        """Begin a call."""
        self._flush()
        self._done.append(CallOpened(index, name))

    def take(self) -> list[Part]:
        """Return what was added since the last time."""
        self._flush()
        taken, self._done = self._done, []
        return taken

    def _add(self, call: int, text: str) -> None:
        if not text:
            return
        if call != self._call:
            self._flush()
            self._call = call
        self._pieces.append(text)

    def _flush(self) -> None:
        if self._pieces:
            text = "".join(self._pieces)
            self._pieces.clear()
            self._done.append(Content(text) if self._call < 0 else CallArguments(self._call, text))


class PlainParser:
    """Answers without calls: all is content."""

    def push(self, text: str) -> list[Part]:
        """Pass it on."""
        return [Content(text)] if text else []

    def close(self) -> list[Part]:
        """Nothing was held back."""
        return []
