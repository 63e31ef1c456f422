"""From outcomes to figures: percentiles of a row, medians of rounds, ratios between servers."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.bench.client import Outcome


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that at least so large a part does not exceed; NaN of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * part) - 1)] if ranked else math.nan


@dataclass(frozen=True)
class Measured:
    """One row against one server in one round."""

    scenario: str
    phase: str
    users: int
    server: str
    round: int
    seconds: float
    """From the first question to the end of the last answer."""
    outcomes: Sequence[Outcome]
    unasked: int = 0
    """Questions that the time was over for."""
    client_cpu: float = 0.0
    """Seconds of CPU that asking took."""
    first_of: str = ""
    """The kind whose first tokens count; empty: all."""
    gap_of: str = ""

    @property
    def row(self) -> tuple[str, str, int]:
        """What rounds and servers of one row have in common."""
        return self.scenario, self.phase, self.users


@dataclass(frozen=True)
class Figures:
    """What is told of a row. Times in seconds; NaN where there is nothing to tell."""

    first_p50: float
    first_p95: float
    first_p99: float
    gap_p50: float
    gap_p99: float
    gap_max: float
    rate: float
    """Tokens of whole answers per second."""
    tokens: int
    requests: int
    errors: int
    """Requests without a whole answer, resets among them."""
    resets: int
    """Connections that were refused, broke or fell silent."""
    unasked: int
    prompt_tokens: int | None
    """None: the server does not tell."""
    cached_tokens: int | None
    codes: Counter[str] = field(default_factory=Counter)
    """What was told instead of an answer."""

    @property
    def computed(self) -> int | None:
        """Prompt tokens that were computed."""
        if self.prompt_tokens is None or self.cached_tokens is None:
            return None
        return self.prompt_tokens - self.cached_tokens


def figures(measured: Measured) -> Figures:
    """Sum one run of a row up."""
    good = [one for one in measured.outcomes if one.good]
    first = [o.first for o in good if o.arrivals and measured.first_of in ("", o.kind)]
    gaps = [gap for o in good if measured.gap_of in ("", o.kind) for gap in o.gaps]
    tokens = sum(one.tokens for one in good)
    bad = [one for one in measured.outcomes if not one.good]
    return Figures(
        first_p50=percentile(first, 0.5),
        first_p95=percentile(first, 0.95),
        first_p99=percentile(first, 0.99),
        gap_p50=percentile(gaps, 0.5),
        gap_p99=percentile(gaps, 0.99),
        gap_max=max(gaps, default=math.nan),
        rate=tokens / measured.seconds if measured.seconds > 0 else math.nan,
        tokens=tokens,
        requests=len(measured.outcomes),
        errors=len(bad),
        resets=sum(one.status == 0 for one in bad),
        unasked=measured.unasked,
        prompt_tokens=_summed([one.prompt_tokens for one in good]),
        cached_tokens=_summed([one.cached for one in good]),
        codes=Counter(f"{one.status or 'reset'} {one.code}" for one in bad),
    )


def _summed(counts: Sequence[int | None]) -> int | None:
    """None unless every one was told."""
    told = [count for count in counts if count is not None]
    return sum(told) if told and len(told) == len(counts) else None


RATIOS = ("first_p50", "first_p95", "first_p99", "gap_p50", "gap_p99", "gap_max", "rate")
"""Of these, rounds give medians, and servers ratios."""


def over_rounds(rounds: Sequence[Figures]) -> Figures:
    """Return medians of the times and rates, and sums of the counts."""

    def total(count: Callable[[Figures], int | None]) -> int | None:
        return _summed([count(one) for one in rounds])

    medians = {name: _median([getattr(one, name) for one in rounds]) for name in RATIOS}
    return Figures(
        **medians,
        tokens=sum(one.tokens for one in rounds),
        requests=sum(one.requests for one in rounds),
        errors=sum(one.errors for one in rounds),
        resets=sum(one.resets for one in rounds),
        unasked=sum(one.unasked for one in rounds),
        prompt_tokens=total(lambda one: one.prompt_tokens),
        cached_tokens=total(lambda one: one.cached_tokens),
        codes=sum((one.codes for one in rounds), Counter[str]()),
    )


def ratios(these: Sequence[Figures], others: Sequence[Figures]) -> dict[str, float]:
    """Return the median over rounds of the ratio in each: a slow spell of a machine touches both halves.

    `computed` is the ratio of the sums. A round that one of them lacks is left out.
    """
    pairs = list(zip(these, others, strict=False))
    found = {
        name: _median([_ratio(getattr(a, name), getattr(b, name)) for a, b in pairs])
        for name in RATIOS
    }
    mine, theirs = over_rounds(these).computed, over_rounds(others).computed
    found["computed"] = _ratio(
        math.nan if mine is None else mine, math.nan if theirs is None else theirs
    )
    return found


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
