"""Gauges and counters that are read off the engines and the line when a scrape asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.engine.interface import EngineState
from server.gateway.host import Host, HostState
from server.gateway.line import Line

_MODEL = ["model"]


class StateCollector:
    """Reads all hosts and the line. What belongs to one set of weights has the label `model`."""

    def __init__(self, hosts: Iterable[Host], admission: Line) -> None:
        """Only reads."""
        self._hosts = tuple(hosts)
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Yield gauges and counters."""
        yield from self._gauges()
        yield self._waiting()
        yield from self._counters()
        yield GaugeMetricFamily(
            "onegpu_places_held",
            "Places in the line held, running ones too.",
            float(self._admission.outstanding),
        )
        line = CounterMetricFamily(
            "onegpu_admission", "What happened at the line, by outcome.", labels=["outcome"]
        )
        for name, value in sorted(self._admission.counters.items()):
            line.add_metric((name,), value)
        yield line

    def _gauges(self) -> Iterator[Metric]:
        texts = {
            "up": "1 while the model is ready.",
            "load_progress": "Part of the model that is loaded, 0 to 1.",
            "slots": "Slots there are.",
            "slots_running": "Slots that are in use.",
            "requests_preempted": "Requests that gave up their slot to a better class and wait again.",
            "kv_cells": "KV cells there are.",
            "kv_cells_reserved": "KV cells reserved by running sequences.",
            "kv_cells_idle": "KV cells that keep finished prefixes.",
            "host_cache_bytes": "System memory that holds prefixes which left the KV cache.",
            "host_cache_entries": "Prefixes in it.",
            "pins": "Prompts of agents that are to be kept ready.",
            "pins_kept": "Of these, those that are in system memory.",
            "leases": "Requests that keep the model loaded.",
            "memory_gpu_bytes": "GPU memory that the model takes by plan while it is loaded.",
            "memory_cpu_bytes": "System memory that it takes by plan while it is loaded.",
        }
        values = {host.spec.name: _values(host) for host in self._hosts}
        for name, text in texts.items():
            family = GaugeMetricFamily(f"onegpu_{name}", text, labels=_MODEL)
            for model, given in values.items():
                family.add_metric((model,), given[name])
            yield family

    def _waiting(self) -> Metric:
        family = GaugeMetricFamily(
            "onegpu_requests_waiting",
            "Sequences in the line for a slot, by class.",
            labels=[*_MODEL, "class"],
        )
        for host in self._hosts:
            for priority, count in host.lane.queued_by_class().items():
                family.add_metric((host.spec.name, priority.name.lower()), count)
        return family

    def _counters(self) -> Iterator[Metric]:
        counted = {host.spec.name: host.counters() for host in self._hosts}
        for name, text, key in (
            ("steps", "Decode calls.", "steps"),
            ("prompt_rows", "Prompt rows computed.", "prefill_rows"),
            ("decode_rows", "Generation rows computed.", "decode_rows"),
        ):
            yield _family(name, text, {m: counts.get(key, 0) for m, (counts, _) in counted.items()})
        seconds = {model: seconds for model, (_, seconds) in counted.items()}
        yield _family("step_seconds", "Time spent in decode calls.", seconds)
        loads = {host.spec.name: host.loads for host in self._hosts}
        yield _family("model_loads", "How often the model was loaded.", loads)
        events = CounterMetricFamily(
            "onegpu_engine_events", "The engine's own counters, by name.", labels=["model", "event"]
        )
        for model, (counts, _) in counted.items():
            for event, value in sorted(counts.items()):
                events.add_metric((model, event), value)
        yield events


def _values(host: Host) -> dict[str, float]:
    status, footprint = host.status(), host.spec.footprint
    there = host.loaded
    ready = host.state is HostState.READY
    return {
        "up": float(ready and status is not None and status.state is EngineState.READY),
        "load_progress": 0.0 if status is None else status.load_progress,
        "slots": host.spec.slots,
        "slots_running": 0 if status is None else status.running,
        "requests_preempted": 0 if status is None else status.preempted,
        "kv_cells": host.spec.kv_cells,
        "kv_cells_reserved": 0 if status is None else status.reserved_cells,
        "kv_cells_idle": 0 if status is None else status.idle_cells,
        "host_cache_bytes": 0 if status is None else status.host_bytes,
        "host_cache_entries": 0 if status is None else status.host_entries,
        "pins": 0 if status is None else status.pins,
        "pins_kept": 0 if status is None else status.pins_kept,
        "leases": host.holders,
        "memory_gpu_bytes": footprint.gpu if there else 0,
        "memory_cpu_bytes": footprint.cpu if there else 0,
    }


def _family(name: str, text: str, values: dict[str, float] | dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"onegpu_{name}", text, labels=_MODEL)
    for model, value in values.items():
        family.add_metric((model,), value)
    return family
