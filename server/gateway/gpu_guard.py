"""Whether anything new may begin on a card that others use too: pure, from samples of its memory.

Two rules say when memory is tight and when there is enough again:

- `reserve`: less is free than a threshold, beyond what this process has planned for and not taken
  yet. The thresholds lie within what the planner leaves free, so a card that is full by plan is
  not tight; only what others take makes it so.
- `used`: more than a share of the card is in use, by whomever.

    open ──tight──▶ holding ──for `hold`──▶ shedding
      ▲                │                       │
      └────enough, for `settle` seconds────────┘        blind: no samples, so nothing is held

Between the two thresholds nothing changes, and a card opens only after `settle` seconds with
enough: one way and back per episode, however noisy it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class GuardState(StrEnum):
    """Where a card stands."""

    OPEN = "open"
    HOLDING = "holding"
    """Nothing begins; newcomers wait in line."""
    SHEDDING = "shedding"
    """Nothing begins; newcomers are sent away."""
    BLIND = "blind"
    """The card cannot be read. Nothing is held: that would be for ever."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A card's memory at a time, in bytes."""

    at: float
    """Monotonic seconds."""
    total: int
    free: int
    own: int | None = None
    """What this process has of it; None where the driver does not tell, as in most containers."""


Readings = Mapping[str, Sample | str]
"""By bus id (`0000:3b:00.0`): a sample, or why there is none."""


@dataclass(frozen=True, slots=True)
class Share:
    """What this process's models take of a card by plan, in bytes."""

    settled: int = 0
    """Of models that are loaded."""
    coming: int = 0
    """Of those that are being loaded."""
    context: int = 0
    """What CUDA takes for the process beside them, from the first load on."""
    loads: int = 0
    """How many have ended so far."""

    @property
    def whole(self) -> int:
        """All that is planned for."""
        return self.context + self.settled + self.coming


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """Thresholds in bytes or shares of the card, times in seconds."""

    rule: Literal["reserve", "used"] = "reserve"
    reserve: int = 512 * 2**20
    """What plans leave free."""
    low: int = 256 * 2**20
    """Rule reserve: with less it is tight. At most `high`."""
    high: int = 384 * 2**20
    """Rule reserve: so much is enough. At most `reserve`."""
    used: float = 0.95
    used_resume: float = 0.90
    hold: float = 10.0
    """How long newcomers may wait in line before they are sent away instead."""
    settle: float = 5.0
    silence: float = 5.0
    """Without a sample for so long it is blind."""


class CardGuard:
    """One card's state. Time comes with the samples."""

    def __init__(self, limits: GuardLimits, now: float) -> None:
        """Start open, at monotonic time `now`."""
        self.limits = limits
        self.state = GuardState.OPEN
        self.since = now
        """When it stopped being open, or opened."""
        self.sample: Sample | None = None
        """The last one; None while blind."""
        self.share = Share()
        self.headroom: int | None = None
        """Free bytes beyond what is planned for and not taken yet."""
        self.transitions: Counter[GuardState] = Counter()
        """How often each state was entered."""
        self.failure = ""
        """Why the last read failed; empty: it did not."""
        self._seen_at = now
        self._clear_since: float | None = None
        self._loaded_at = -math.inf
        self._left = limits.reserve

    @property
    def low(self) -> int:
        """Free bytes below which it is tight."""
        if self.limits.rule == "used":
            return self._unused(self.limits.used)
        return self._scaled(self.limits.low)

    @property
    def high(self) -> int:
        """Free bytes that are enough again."""
        if self.limits.rule == "used":
            return self._unused(self.limits.used_resume)
        return self._scaled(self.limits.high)

    @property
    def futile(self) -> bool:
        """Rule used: whether loaded models alone break it, so that it would hold for ever."""
        planned = self.share.whole if self.share.settled else 0
        return (
            self.limits.rule == "used"
            and self.sample is not None
            and planned > self.sample.total - self.low
        )

    def observe(self, sample: Sample, share: Share) -> None:
        """Take a sample, with the plan as it stands."""
        if share.loads != self.share.loads:
            self._loaded_at = sample.at
        self.share, self.sample = share, sample
        self._seen_at, self.failure = sample.at, ""
        free = self.headroom = sample.free - _owed(sample, share)
        self._left = self._left_by_design(sample, share)
        if self.limits.rule == "used":
            free = sample.free
        self._step(sample.at, tight=free < self.low, clear=free >= self.high)

    def fail(self, why: str, now: float) -> None:
        """Note that the card could not be read."""
        self.failure = why
        self.tick(now)

    def tick(self, now: float) -> None:
        """Give up on a card of which nothing was heard for too long."""
        if self.state is not GuardState.BLIND and now - self._seen_at >= self.limits.silence:
            self.sample = self.headroom = None
            self._enter(GuardState.BLIND, now)

    def advice(self, now: float) -> float:
        """Seconds after which a retry has a chance: as long again as it has lasted so far.

        When there is enough again, what is left until it opens.
        """
        if self._clear_since is not None:
            return max(0.0, self._clear_since + self.limits.settle - now)
        return max(now - self.since, self.limits.settle)

    def _left_by_design(self, sample: Sample, share: Share) -> int:
        """Return what is free of the reserve if nobody else takes any of it.

        A plan may have been a little wrong. To hold the line for that would be for ever, since
        nobody else could give it back. Where the driver does not tell, all that is taken until
        shortly after a load counts as the load's.
        """
        reserve = self.limits.reserve
        if sample.own is not None:
            return max(0, reserve - max(0, sample.own - share.whole))
        recent = sample.at - self._loaded_at <= self.limits.settle
        return max(0 if recent else self._left, min(reserve, sample.free))

    def _scaled(self, threshold: int) -> int:
        """Less is left by design than was planned: the thresholds shrink with it."""
        reserve = self.limits.reserve
        return threshold * self._left // reserve if reserve else 0

    def _unused(self, used: float) -> int:
        return 0 if self.sample is None else round(self.sample.total * (1 - used))

    def _step(self, now: float, *, tight: bool, clear: bool) -> None:
        if not clear:
            self._clear_since = None
        elif self._clear_since is None:
            self._clear_since = now
        match self.state:
            case GuardState.OPEN | GuardState.BLIND:
                if tight:
                    self._enter(GuardState.HOLDING, now)
                elif self.state is GuardState.BLIND:
                    self._enter(GuardState.OPEN, now)
            case GuardState.HOLDING | GuardState.SHEDDING:
                if self._clear_since is not None:
                    if now - self._clear_since >= self.limits.settle:
                        self._enter(GuardState.OPEN, now)
                elif self.state is GuardState.HOLDING and now - self.since >= self.limits.hold:
                    self._enter(GuardState.SHEDDING, now)

    def _enter(self, state: GuardState, now: float) -> None:
        if state is not GuardState.SHEDDING:  # the same episode goes on
            self.since = now
        self.state = state
        self.transitions[state] += 1


def _owed(sample: Sample, share: Share) -> int:
    """Bytes that a load has yet to take; where the driver does not tell, none are counted twice.

    Models that took less than was planned for them let it seem a little more, within their plans.
    """
    if not share.coming or sample.own is None:
        return 0
    return min(share.context + share.coming, max(0, share.whole - sample.own))
