"""Whether a worker that lives is still one: its event loop turns, and nothing is wrong for good."""

from __future__ import annotations

_LONGEST_LOOK = 2.0
"""Seconds counted per look: a machine that was suspended, or a container that was frozen, has not
waited for a dead loop meanwhile."""
_MERCY = 3.0
"""Seconds that a fault lasts before it counts: streams are told of it first, and it may pass."""
_FROZEN = 10.0
"""Seconds between two looks that only a process that did not run at all lets pass."""


class Watchdog:
    """Looks at one worker, from when its event loop turns."""

    def __init__(self) -> None:
        self._beats = -1
        self._still = 0.0
        self._faulty = 0.0
        self._thawing = 0.0
        """Seconds left in which a fault says only that the worker was frozen, too."""
        self._looked: float | None = None

    def look(self, now: float, beats: int, fault: str, stall_after: float) -> str | None:
        """Return why the worker has to be ended, or None. `now`: monotonic seconds."""
        passed = 0.0 if self._looked is None else now - self._looked
        elapsed, self._looked = min(passed, _LONGEST_LOOK), now
        # A step that was under way has taken as long as the freeze, and is given time to end.
        self._thawing = stall_after if passed > _FROZEN else max(0.0, self._thawing - elapsed)
        if beats != self._beats:
            self._beats, self._still = beats, 0.0
        else:
            self._still += elapsed
        self._faulty = self._faulty + elapsed if fault and not self._thawing else 0.0
        if self._still > stall_after:
            return f"its event loop stood still for {self._still:.0f} s"
        if fault and self._faulty >= _MERCY:
            return fault
        return None
