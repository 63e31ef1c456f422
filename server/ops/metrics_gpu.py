"""The memory of the cards that models are on, and what the guard makes of it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.gateway.gpu_guard import CardGuard, GuardState
from server.gateway.gpu_shedding import GpuGuard

_CARD = ["card"]


class GpuCollector(Collector):
    """Reads the guard. The label `card` is the bus id; a card that cannot be read has no bytes."""

    def __init__(self, guard: GpuGuard) -> None:
        """Only reads."""
        self._guard = guard

    def collect(self) -> Iterator[Metric]:
        """Yield gauges and counters."""
        yield GaugeMetricFamily(
            "onegpu_gpu_guard_cards",
            "Cards that the guard watches; 0: it is off.",
            len(self._guard.cards),
        )
        texts = {
            "memory_total": "Memory of the card.",
            "memory_used": "Memory in use, by whomever.",
            "memory_free": "Memory that nobody uses.",
            "memory_planned": "Memory that loaded and loading models take by plan.",
            "guard_headroom": "Free memory beyond what is planned for and not taken yet.",
            "guard_low": "Below so much free memory nothing new begins.",
            "guard_high": "So much free memory is enough again.",
        }
        values = {card.bus_id: _bytes(card.guard) for card in self._guard.cards}
        for name, text in texts.items():
            family = GaugeMetricFamily(f"onegpu_gpu_{name}_bytes", text, labels=_CARD)
            for bus_id, given in values.items():
                if name in given:
                    family.add_metric((bus_id,), given[name])
            yield family
        states = GaugeMetricFamily(
            "onegpu_gpu_guard_state", "1 for the state it is in.", labels=["card", "state"]
        )
        moves = CounterMetricFamily(
            "onegpu_gpu_guard_transitions",
            "How often it came to a state.",
            labels=["card", "state"],
        )
        for card in self._guard.cards:
            for state in GuardState:
                states.add_metric((card.bus_id, state.value), card.guard.state is state)
                moves.add_metric((card.bus_id, state.value), card.guard.transitions[state])
        yield states
        yield moves


def _bytes(guard: CardGuard) -> dict[str, float]:
    sample = guard.sample
    if sample is None or guard.headroom is None:
        return {}
    return {
        "memory_total": sample.total,
        "memory_used": sample.total - sample.free,
        "memory_free": sample.free,
        "memory_planned": guard.share.settled + guard.share.coming,
        "guard_headroom": guard.headroom,
        "guard_low": guard.low,
        "guard_high": guard.high,
    }
