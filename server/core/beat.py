"""Signs of life: what a part that works on its own tells of itself, for whoever watches it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from server.core.clock import Clock, SystemClock


@dataclass(frozen=True, slots=True)
class Beat:
    """When a part last got on, and whether it should. Times are monotonic seconds."""

    last_progress: float
    """When it last finished something, or work came to it while it was idle."""
    has_work: bool
    """Whether it has anything to get on with."""
    limit: float
    """Seconds without progress that are too many while it has work."""

    def still(self, now: float) -> float:
        """Seconds for which it has stood still although it should not; 0 while that is no fault."""
        seconds = now - self.last_progress
        return seconds if self.has_work and seconds > self.limit else 0.0


class Jobs:
    """The beat of a part whose jobs come from any thread and may overlap."""

    def __init__(self, limit: float = 60.0, clock: Clock | None = None) -> None:
        """`limit`: seconds in which one of them must end while there are any."""
        self._limit = limit
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._open = 0
        self._last = self._clock.monotonic()

    @contextlib.contextmanager
    def job(self) -> Iterator[None]:
        """Count what runs in the block, or waits to, as one job."""
        self._count(1, begins=True)
        try:
            yield
        finally:
            self._count(-1, begins=False)

    def beat(self) -> Beat:
        """Tell of them."""
        with self._lock:
            return Beat(self._last, self._open > 0, self._limit)

    def _count(self, more: int, *, begins: bool) -> None:
        with self._lock:
            # One that joins others is no progress: a crowd before a closed door would look alive.
            if not begins or not self._open:
                self._last = self._clock.monotonic()
            self._open += more
