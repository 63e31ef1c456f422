"""Prometheus metrics from a registry of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from server.gateway.fair_queue import Priority
from server.gateway.host import Host
from server.gateway.line import Line
from server.ops.metrics_state import StateCollector

_WAITS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_GAPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The gateway's `Telemetry`, and the engine's own numbers read at every scrape."""

    def __init__(
        self, hosts: Iterable[Host], admission: Line, restarts: Mapping[str, int] | None = None
    ) -> None:
        """`hosts` and `admission` are only read. `restarts`: processes before this one, by cause."""
        self._registry = CollectorRegistry()
        self._registry.register(StateCollector(hosts, admission))
        ended = self._counter(
            "restarts", "Server processes replaced since the supervisor began.", ("cause",)
        )
        for cause, count in (restarts or {}).items():
            ended.labels(cause).inc(count)
        self._requests = self._counter(
            "requests", "HTTP requests answered.", ("endpoint", "status")
        )
        self._request_seconds = self._histogram(
            "request_seconds", "Time from a request to the end of its answer.", _WAITS, "endpoint"
        )
        self._errors = self._counter("errors", "Errors told to clients.", ("code",))
        self._aborted = self._counter("aborted", "Generations closed before their end.")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of ended choices.")
        self._cached = self._counter(
            "cached_tokens", "Of the prompt tokens, those that were not computed again."
        )
        self._completion = self._counter("completion_tokens", "Generated tokens of ended choices.")
        self._queue_wait = self._histogram(
            "queue_wait_seconds", "Time from submission to a slot, by class.", _WAITS, "class"
        )
        self._first_token = self._histogram(
            "first_token_seconds", "Time from submission to the first token.", _WAITS
        )
        self._gap = self._histogram(
            "token_gap_seconds", "Time between two arrivals of tokens of one choice.", _GAPS
        )

    def add(self, collector: Collector) -> None:
        """Expose what another part tells of itself, too."""
        self._registry.register(collector)

    def render(self) -> tuple[bytes, str]:
        """Return the text and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def names(self) -> list[str]:
        """Return every metric's name as it is exposed, without the suffixes of histograms."""
        return sorted(
            metric.name + ("_total" if metric.type == "counter" else "")
            for metric in self._registry.collect()
        )

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an HTTP request that was answered."""
        self._requests.labels(endpoint, str(status)).inc()
        self._request_seconds.labels(endpoint).observe(seconds)

    def error(self, code: str) -> None:
        """Count an error told to a client."""
        self._errors.labels(code).inc()

    def queue_wait(self, seconds: float, priority: Priority) -> None:
        """Tell how long one choice waited for a slot."""
        self._queue_wait.labels(priority.name.lower()).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Tell the time from submission to the first token of one choice."""
        self._first_token.observe(seconds)

    def token_gap(self, seconds: float, tokens: int) -> None:  # noqa: ARG002 - part of Telemetry
        """Tell the time between two arrivals of tokens of one choice."""
        self._gap.observe(seconds)

    def usage(self, prompt: int, cached: int, completion: int) -> None:
        """Count the tokens of a choice that ended."""
        self._prompt.inc(prompt)
        self._cached.inc(cached)
        self._completion.inc(completion)

    def aborted(self) -> None:
        """Count a generation that was closed before its end."""
        self._aborted.inc()

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"onegpu_{name}", text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"onegpu_{name}", text, labels, buckets=buckets, registry=self._registry)
