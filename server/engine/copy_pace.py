"""How long it takes to copy cells between the KV cache and host memory, learned from the copies before."""

from __future__ import annotations

_MEMORY = 64
"""Doubts after which what was measured has mostly been forgotten."""


class CopyPace:
    """Of copies in one direction. Later ones count more."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._cells = 0.0
        self._seconds = 0.0

    def observe(self, cells: int, seconds: float) -> None:
        """Learn from a copy that succeeded."""
        self._cells = (self._cells + cells) / 2
        self._seconds = (self._seconds + seconds) / 2

    def seconds(self, cells: int) -> float | None:
        """Return what a copy of `cells` cells should take; None before anything was measured."""
        return cells * self._seconds / self._cells if self._seconds > 0.0 else None

    def doubt(self) -> None:
        """Expect a little less: a copy was not made for its time, and only another one can tell if that was wrong."""
        self._seconds *= 1 - 1 / _MEMORY
