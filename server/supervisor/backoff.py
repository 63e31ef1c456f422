"""How long to wait before the next worker."""

from __future__ import annotations


class Backoff:
    """Not at all at first; then a second, and twice as long after each worker that did not last."""

    def __init__(self, *, longest: float = 30.0, settled: float = 10.0) -> None:
        """`settled`: seconds of readiness after which a death is the first one again."""
        self._longest = longest
        self._settled = settled
        self._deaths = 0

    def after(self, ready_for: float | None) -> float:
        """Return the seconds to wait. `ready_for`: how long the worker was ready; None: never."""
        if ready_for is not None and ready_for >= self._settled:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        return min(self._longest, 2.0 ** min(self._deaths - 2, 30))
