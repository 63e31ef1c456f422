"""Tells a model's reasoning from its answer while the text still comes in."""

from __future__ import annotations

from typing import Literal

Part = tuple[Literal["answer", "thinking"], str]

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkingSplitter:
    """Splits `<think>…</think>` at the beginning of a text; the marks themselves are left out.

    Only the beginning counts: a `<think>` further on is what the answer is about.
    """

    def __init__(self) -> None:
        self._held = ""
        self._state: Literal["start", "thinking", "between", "answer"] = "start"

    def push(self, text: str) -> list[Part]:
        """Take more text; return what is certain of it."""
        self._held += text
        parts: list[Part] = []
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(_OPEN):
                self._state, self._held = "thinking", begun[len(_OPEN) :]
            elif not _OPEN.startswith(begun):
                self._state = "answer"
        if self._state == "thinking":
            inside, closed, after = self._held.partition(_CLOSE)
            if closed:
                self._state, self._held = "between", after
            else:
                keep = _tail(inside)
                inside, self._held = inside[: len(inside) - keep], inside[len(inside) - keep :]
            if inside:
                parts.append(("thinking", inside))
        if self._state == "between":
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "between"
        if self._state == "answer" and self._held:
            parts.append(("answer", self._held))
            self._held = ""
        return parts

    def finish(self) -> list[Part]:
        """Return what was held back when nothing more comes."""
        held, self._held = self._held, ""
        kind: Literal["answer", "thinking"] = "thinking" if self._state == "thinking" else "answer"
        return [(kind, held)] if held else []


def _tail(text: str) -> int:
    """Length of the longest end of `text` with which the closing mark begins."""
    return next((size for size in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:size])), 0)
