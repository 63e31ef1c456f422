"""Whether a remote is worth asking: pure, from what became of the last requests to it.

    closed ──failures in a row──▶ open ──after a pause──▶ half open ──success──▶ closed
                                    ▲                          │
                                    └──────failure, pause × 2──┘

A probe that finds it alive ends the pause: the next request is the try. One that does not begins
the pause anew, so that no request is spent on what is known to be gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.core.clock import Clock


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    """One request may try."""
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When to stop asking, and for how long."""

    failures: int = 5
    """In a row."""
    pause: float = 30.0
    """Seconds until the first try."""
    longest: float = 300.0
    """Seconds that the pause grows to while tries fail."""


class Trial:
    """One request's outcome. Told once; what comes later is not heard."""

    def __init__(self, breaker: Breaker) -> None:
        """Made by `Breaker.begin`."""
        self._breaker = breaker
        self._told = False

    def spoke(self) -> None:
        """It began to answer: if this is the try, others need not wait for its end."""
        self._breaker.heard(self)

    def succeeded(self) -> None:
        """The remote answered; what it said is another matter."""
        self._tell(outcome=True)

    def failed(self) -> None:
        """It did not, or nothing that can be used."""
        self._tell(outcome=False)

    def abandoned(self) -> None:
        """Nobody will know."""
        self._tell(outcome=None)

    def _tell(self, *, outcome: bool | None) -> None:
        if not self._told:
            self._told = True
            self._breaker.tell(self, outcome=outcome)


class Breaker:
    """Belongs to the event loop."""

    def __init__(self, limits: BreakerLimits, clock: Clock) -> None:
        """Start closed."""
        self.opened = 0
        """How often it opened."""
        self._limits = limits
        self._clock = clock
        self._failures = 0
        self._until: float | None = None
        """Monotonic time of the next try; None: closed."""
        self._pause = limits.pause
        self._trial: Trial | None = None
        """The one that tries while it is half open."""

    @property
    def state(self) -> BreakerState:
        """Where it stands now."""
        if self._until is None:
            return BreakerState.CLOSED
        waits = self._clock.monotonic() < self._until or self._trial is not None
        return BreakerState.OPEN if waits else BreakerState.HALF_OPEN

    def wait(self) -> float | None:
        """Seconds until somebody may ask; None: now."""
        if self.state is not BreakerState.OPEN or self._until is None:
            return None
        return max(1.0, self._until - self._clock.monotonic())

    def begin(self) -> Trial:
        """Let a request ask; `wait` says whether it may. Its outcome must be told."""
        trial = Trial(self)
        if self._until is not None:
            self._trial = trial
        return trial

    def answered(self) -> None:
        """A probe found it alive: whoever comes next may try."""
        if self._until is not None:
            self._until = self._clock.monotonic()

    def missed(self) -> None:
        """A probe did not find it."""
        if self._until is not None:
            self._until = max(self._until, self._clock.monotonic() + self._pause)
        else:
            self._failed(tried=False)

    def heard(self, trial: Trial) -> None:
        """Close for the first words of a try. How it ends counts as for any other request."""
        if trial is self._trial:
            self.tell(trial, outcome=True)

    def tell(self, trial: Trial, *, outcome: bool | None) -> None:
        """Take the outcome of a request; None: it is not known."""
        tried = trial is self._trial
        if tried:
            self._trial = None
        if outcome is None or (self._until is not None and not tried):
            return  # what was under way when it opened says nothing new
        if outcome:
            self._failures, self._until, self._pause = 0, None, self._limits.pause
            return
        self._failed(tried=tried)

    def _failed(self, *, tried: bool) -> None:
        self._failures += 1
        if tried:
            self._pause = min(2 * self._pause, self._limits.longest)
        if tried or self._failures >= self._limits.failures:
            self.opened += 1
            self._until = self._clock.monotonic() + self._pause
