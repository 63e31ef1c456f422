"""Prometheus metrics from a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from server.engine.interface import Engine, EngineState
from server.gateway.admission import AdmissionController

_WAITS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_GAPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The gateway's `Telemetry`, and the engine's own numbers read at every scrape."""

    def __init__(self, engine: Engine, admission: AdmissionController) -> None:
        """`engine` and `admission` are only read."""
        self._registry = CollectorRegistry()
        self._registry.register(_State(engine, admission))
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
            "queue_wait_seconds", "Time from submission to a slot.", _WAITS
        )
        self._first_token = self._histogram(
            "first_token_seconds", "Time from submission to the first token.", _WAITS
        )
        self._gap = self._histogram(
            "token_gap_seconds", "Time between two arrivals of tokens of one choice.", _GAPS
        )

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

    def queue_wait(self, seconds: float) -> None:
        """Tell how long one choice waited for a slot."""
        self._queue_wait.observe(seconds)

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


class _State:
    """Reads the engine and the line when a scrape asks."""

    def __init__(self, engine: Engine, admission: AdmissionController) -> None:
        self._engine = engine
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Yield gauges and the engine's counters."""
        status = self._engine.status()
        gauges = {
            "up": ("1 while the engine is ready.", status.state is EngineState.READY),
            "load_progress": ("Part of the model that is loaded, 0 to 1.", status.load_progress),
            "slots": ("Slots there are.", status.slots),
            "slots_running": ("Slots that are in use.", status.running),
            "requests_waiting": ("Sequences in the line for a slot.", status.waiting),
            "places_held": ("Places in the line held, running ones too.", self._held()),
            "kv_cells": ("KV cells there are.", status.kv_cells),
            "kv_cells_reserved": ("KV cells reserved by running sequences.", status.reserved_cells),
            "kv_cells_idle": ("KV cells that keep finished prefixes.", status.idle_cells),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"onegpu_{name}", text, float(value))
        counters = status.counters
        yield _total("steps", "Decode calls.", counters.get("steps", 0))
        yield _total("step_seconds", "Time spent in decode calls.", status.step_seconds)
        yield _total("prompt_rows", "Prompt rows computed.", counters.get("prefill_rows", 0))
        yield _total("decode_rows", "Generation rows computed.", counters.get("decode_rows", 0))
        events = CounterMetricFamily(
            "onegpu_engine_events", "The engine's own counters, by name.", labels=("event",)
        )
        for name, value in sorted(counters.items()):
            events.add_metric((name,), value)
        yield events
        line = CounterMetricFamily(
            "onegpu_admission", "What happened at the line, by outcome.", labels=("outcome",)
        )
        for name, value in sorted(self._admission.counters.items()):
            line.add_metric((name,), value)
        yield line

    def _held(self) -> int:
        return self._admission.outstanding


def _total(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"onegpu_{name}", text, value)
