"""How often models answered for others, and how remotes do, read when a scrape asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.gateway.fallback import Fallback
from server.gateway.remote.watch import RemoteWatch


class FallbackCollector(Collector):
    """Reads the one that decides, and the remotes."""

    def __init__(self, fallback: Fallback, remotes: RemoteWatch) -> None:
        """Only reads."""
        self._fallback = fallback
        self._remotes = remotes

    def collect(self) -> Iterator[Metric]:
        """Yield counters."""
        family = CounterMetricFamily(
            "onegpu_fallbacks",
            "Times that a model was asked in place of another, by the reason.",
            labels=["model", "target", "reason"],
        )
        for labels, value in sorted(self._fallback.counters.items()):
            family.add_metric(labels, value)
        yield family
        yield from self._of_remotes()

    def _of_remotes(self) -> Iterator[Metric]:
        routed = self._remotes.routed
        up = GaugeMetricFamily(
            "onegpu_remote_up", "1 while requests are sent to the remote.", labels=["remote"]
        )
        opened = CounterMetricFamily(
            "onegpu_remote_breaker_opened", "How often its breaker opened.", labels=["remote"]
        )
        for remote in routed:
            up.add_metric((remote.name,), float(remote.up))
            opened.add_metric((remote.name,), remote.breaker.opened)
        yield up
        yield opened
        for name, text, label, counters in (
            ("requests", "Requests sent to it.", "outcome", [one.requests for one in routed]),
            ("probes", "Looks at whether it is there.", "outcome", [one.probes for one in routed]),
            ("tokens", "Tokens as it counted them.", "kind", [one.tokens for one in routed]),
        ):
            family = CounterMetricFamily(f"onegpu_remote_{name}", text, labels=["remote", label])
            for remote, counter in zip(routed, counters, strict=True):
                for key, value in sorted(counter.items()):
                    family.add_metric((remote.name, key), value)
            yield family
