"""Time as a parameter: parts that need it are handed a `Clock`, tests hand them a fake one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch; may jump."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Return `time.monotonic()` in seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Return `time.time()` in seconds."""
        return time.time()
