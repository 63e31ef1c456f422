"""Refused keys, read when a scrape asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class KeyRefusalsCollector(Collector):
    """Reads the counts of whoever tells keys apart."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """`counts`: refusals by reason; only read."""
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield one counter."""
        refused = CounterMetricFamily(
            "onegpu_key_refusals", "Requests whose key was refused, by reason.", labels=["reason"]
        )
        for reason, value in sorted(self._counts.items()):
            refused.add_metric((reason,), value)
        yield refused
