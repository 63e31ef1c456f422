"""What llama.cpp allocated, beside what was planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from server.catalog.plan.plans import Plan

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Allocated:
    """Bytes of llama.cpp's buffers, as precise as its log."""

    weights_gpu: int = 0
    weights_cpu: int = 0
    kv_gpu: int = 0
    kv_cpu: int = 0
    compute_gpu: int = 0
    compute_cpu: int = 0
    output_cpu: int = 0

    @property
    def gpu(self) -> int:
        """All buffers on the GPU."""
        return self.weights_gpu + self.kv_gpu + self.compute_gpu

    @property
    def cpu(self) -> int:
        """All buffers in system memory."""
        return self.weights_cpu + self.kv_cpu + self.compute_cpu + self.output_cpu


@dataclass(frozen=True, slots=True)
class Difference:
    """One kind of buffer."""

    name: str
    planned: int
    allocated: int

    @property
    def over(self) -> bool:
        """Whether llama.cpp took more than planned, beyond the rounding of its log."""
        return self.allocated > self.planned + _MIB // 100


def compare(plan: Plan, allocated: Allocated) -> list[Difference]:
    """Return every kind of buffer that either side has."""
    pairs = [
        Difference(item.name, getattr(plan, item.name), getattr(allocated, item.name))
        for item in fields(Allocated)
    ]
    return [pair for pair in pairs if pair.planned or pair.allocated]


def describe(differences: Sequence[Difference]) -> str:
    """Write one line for the log: planned and allocated MiB by kind; what went over is marked."""
    parts = [
        f"{pair.name} {pair.planned / _MIB:.1f}/{pair.allocated / _MIB:.1f}"
        + (" OVER" if pair.over else "")
        for pair in differences
    ]
    return "planned/allocated MiB: " + ", ".join(parts)
