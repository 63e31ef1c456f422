"""How much memory models take and may take, in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one loaded model takes: weights, KV cache and compute buffers together."""

    gpu: int = 0
    cpu: int = 0

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.gpu + other.gpu, self.cpu + other.cpu)


@dataclass(frozen=True, slots=True)
class Budget:
    """What all loaded models together may take; None: not watched."""

    gpu: int | None = None
    cpu: int | None = None

    def holds(self, footprint: Footprint) -> bool:
        """Tell whether so much fits."""
        return (self.gpu is None or footprint.gpu <= self.gpu) and (
            self.cpu is None or footprint.cpu <= self.cpu
        )


def total(footprints: Iterable[Footprint]) -> Footprint:
    """Sum up."""
    return sum(footprints, Footprint())
