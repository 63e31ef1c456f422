"""What is kept for retries, read when a scrape asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.gateway.answers import AnswerKeeper


class AnswersCollector(Collector):
    """Reads the keeper of answers under idempotency keys."""

    def __init__(self, answers: AnswerKeeper[Any]) -> None:
        """Only reads."""
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """Yield gauges and a counter."""
        answers = self._answers
        yield GaugeMetricFamily(
            "onegpu_idempotency_answers",
            "Answers under idempotency keys, complete or not.",
            float(len(answers)),
        )
        yield GaugeMetricFamily(
            "onegpu_idempotency_bytes", "Bytes of the complete ones.", float(answers.size)
        )
        counted = CounterMetricFamily(
            "onegpu_idempotency",
            "Requests with a key, and what became of answers, by outcome.",
            labels=["outcome"],
        )
        for name, value in sorted(answers.counters.items()):
            counted.add_metric((name,), value)
        yield counted
