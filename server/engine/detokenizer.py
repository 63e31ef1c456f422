"""From tokens to text that may be shown: whole characters, no beginnings of stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from server.core.request import Thinking


class Detokenizer:
    """Incremental: the cost of a token does not depend on how many came before it.

    Stop strings rest while the model thinks, and during the line breaks between that and the answer: models write
    two, which would be the end for everybody who stops at an empty line.
    """

    __slots__ = ("_awake", "_decoder", "_first", "_held", "_pieces", "_stop", "_thinking", "match")

    def __init__(
        self, pieces: Sequence[bytes], stop: Sequence[str] = (), thinking: Thinking | None = None
    ) -> None:
        """`pieces`: token id → UTF-8 bytes, possibly of a part of a character."""
        self._pieces = pieces
        self._thinking = thinking
        """None: it does not think, or no more."""
        self._first = thinking is not None and not thinking.inside
        """Whether the next token decides whether it thinks."""
        self._awake = thinking is None
        """Whether stop strings are looked for."""
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.match: str | None = None
        """The stop string that was found; from then on there is no more text."""

    def push(self, token: int) -> str:
        """Take a token; return the text that is now certain."""
        text = self._decoder.decode(self._pieces[token])
        if not self._stop:
            return text
        return self._release(text) if self._awake else self._wake(token, text)

    def flush(self) -> str:
        """Return what was held back, at the end. A character cut short becomes U+FFFD."""
        if self.match is not None:
            return ""
        text = self._decoder.decode(b"", final=True)
        if self._stop and self._awake:
            text = self._release(text)
            if self.match is None:
                text, self._held = text + self._held, ""
        return text

    def _wake(self, token: int, text: str) -> str:
        """Take a token of the reasoning, or the first of the answer."""
        if self._first and self._thinking is not None:
            self._first = False
            if token != self._thinking.start:
                self._thinking, self._awake = None, True
                return self._release(text)
        if self._thinking is not None:
            if token == self._thinking.end:
                self._thinking = None
            return text
        answer = text.lstrip("\n")
        self._awake = bool(answer)
        return text.removesuffix(answer) + self._release(answer)

    def _release(self, text: str) -> str:
        buffer = self._held + text
        first = min(
            ((at, stop) for stop in self._stop if (at := buffer.find(stop)) >= 0),
            default=None,
        )
        if first is not None:
            self.match, self._held = first[1], ""
            return buffer[: first[0]]
        keep = len(buffer) - max(_overlap(buffer, stop) for stop in self._stop)
        self._held = buffer[keep:]
        return buffer[:keep]


def _overlap(buffer: str, stop: str) -> int:
    """Length of the longest end of `buffer` that `stop`, itself not in it, begins with."""
    at = buffer.find(stop[0], max(0, len(buffer) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(buffer[at:]):
            return len(buffer) - at
        at = buffer.find(stop[0], at + 1)
    return 0
