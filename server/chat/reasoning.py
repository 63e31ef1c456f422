"""Which tokens of an answer are reasoning: those between `<think>` and `</think>`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


class ReasoningCounter:
    """Counts the reasoning tokens of one choice, the two markers included."""

    __slots__ = ("_close", "_open", "count", "inside")

    def __init__(self, markers: Mapping[str, int], prompt: Sequence[int] = ()) -> None:
        """`markers`: the vocabulary's marker tokens. A prompt may have opened the block already."""
        self._open = markers.get("<think>", -1)
        self._close = markers.get("</think>", -1)
        self.count = 0
        self.inside = self._open >= 0 and self._left_open(prompt)

    def add(self, tokens: Iterable[int]) -> None:
        """Take the tokens of a delta."""
        if self._open < 0:
            return
        for token in tokens:
            if token == self._open:
                self.inside = True
            self.count += self.inside
            if token == self._close:
                self.inside = False

    def _left_open(self, prompt: Sequence[int]) -> bool:
        last = next((t for t in reversed(prompt) if t in (self._open, self._close)), None)
        return last == self._open
