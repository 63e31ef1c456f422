"""How fast a model's line moves: measured, a moving average."""

from __future__ import annotations

import math


class DrainRate:
    """Finished requests and their cost per second, over the time in which there was work."""

    def __init__(self, memory: float) -> None:
        """`memory`: seconds of busy time after which an observation weighs 1/e."""
        self._memory = memory
        self._busy = 0.0
        self._finished = 0.0
        self._cost = 0.0

    def observe(self, busy: float, finished: int, cost: float = 0.0) -> None:
        """Take `busy` seconds with work that ended with `finished` requests of `cost` done."""
        keep = math.exp(-busy / self._memory)
        self._busy = self._busy * keep + busy
        self._finished = self._finished * keep + finished
        self._cost = self._cost * keep + cost

    @property
    def per_second(self) -> float | None:
        """Requests per second; None before the first one finished."""
        return self._finished / self._busy if self._finished and self._busy else None

    def seconds(self, requests: int, cost: float | None = None) -> float | None:
        """Time in which so many requests finish; None before one has.

        `cost`: what they were estimated to take together, in the unit that `observe` was told.
        """
        rate = self.per_second
        if rate is None:
            return None
        if cost is None or self._cost <= 0:
            return requests / rate
        return cost * self._busy / self._cost
