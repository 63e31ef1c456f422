"""Which of two configurations is better, from measurements that took turns: A B A B."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from server.engine.trial import Rates

WEIGHTS = {"prefill": 0.30, "beside": 0.10, "single": 0.25, "all": 0.35}
"""Exponents of the score. Generating is what takes most of an answer's time; what others feel of a
prompt is `beside`."""
PROMPT_WEIGHTS = {"prefill": 0.5, "beside": 0.5}
"""The same where only prompts are measured. That streams beside them have no longer gaps is seen to by `MOST_LOSS`."""
LEAST_GAIN = 0.02
"""What the worst run of the better one must be ahead of the best run of the other."""
MOST_LOSS = 0.05
"""What no single figure may lose, however much the others gain."""


def score(rates: Rates) -> float:
    """Return the weighted geometric mean of the figures, tokens/s."""
    weights = WEIGHTS if rates.all is not None else PROMPT_WEIGHTS
    figures = {name: value for name, value in _figures(rates).items() if name in weights}
    whole = sum(weights[name] for name in figures)
    return math.exp(sum(weights[name] * math.log(value) for name, value in figures.items()) / whole)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs that took turns, as many of each."""

    before: Sequence[Rates]
    after: Sequence[Rates]

    @property
    def gain(self) -> float:
        """How much better `after` scores; 0.1 is 10 %. Median of the pairs."""
        return _median_ratio([score(a) for a in self.before], [score(b) for b in self.after]) - 1

    @property
    def gains(self) -> dict[str, float]:
        """The same for each figure."""
        return {
            name: _median_ratio(
                [_figures(a)[name] for a in self.before], [_figures(b)[name] for b in self.after]
            )
            - 1
            for name in _figures(self.before[0])
        }

    @property
    def better(self) -> bool:
        """Whether `after` is ahead beyond the noise, and costs no figure much."""
        worst = min(score(rates) for rates in self.after)
        best = max(score(rates) for rates in self.before)
        return worst > best * (1 + LEAST_GAIN) and self.costly is None

    @property
    def costly(self) -> str | None:
        """The figure that loses most, if it loses too much."""
        name, gain = min(self.gains.items(), key=lambda item: item[1])
        return name if gain < -MOST_LOSS else None


def _figures(rates: Rates) -> dict[str, float]:
    return {name: value for name, value in asdict(rates).items() if value is not None}


def _median_ratio(before: Sequence[float], after: Sequence[float]) -> float:
    return statistics.median(b / a for a, b in zip(before, after, strict=True))
