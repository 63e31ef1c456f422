"""How often models answered for others, read when a scrape asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.gateway.fallback import Fallback


class FallbackCollector(Collector):
    """Reads the one that decides."""

    def __init__(self, fallback: Fallback) -> None:
        """Only reads."""
        self._fallback = fallback

    def collect(self) -> Iterator[Metric]:
        """Yield counters."""
        family = CounterMetricFamily(
            "onegpu_fallbacks",
            "Answers that a model began for another, by the reason.",
            labels=["model", "target", "reason"],
        )
        for labels, value in sorted(self._fallback.counters.items()):
            family.add_metric(labels, value)
        yield family
