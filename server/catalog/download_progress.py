"""What a download tells while it runs; the command line shows it, the Ollama API may."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what happens, in bytes."""

    def say(self, text: str) -> None:
        """Tell a fact: what was chosen and why, a lost connection."""

    def begin(self, label: str, *, total: int, done: int) -> None:
        """Begin a phase of `total` bytes, of which `done` are there already."""

    def advance(self, count: int) -> None:
        """`count` more bytes; negative when bytes turned out to be useless."""

    def end(self) -> None:
        """The phase is over, done or not."""


class Silent:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Drop it."""

    def begin(self, label: str, *, total: int, done: int) -> None:
        """Drop it."""

    def advance(self, count: int) -> None:
        """Drop it."""

    def end(self) -> None:
        """Nothing to end."""
