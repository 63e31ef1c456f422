"""What memory there is to plan for."""

from __future__ import annotations

from dataclasses import dataclass

from server.catalog.plan.weights import ALL_REPACKED

MIB = 1 << 20
CUDA_CONTEXT = 512 * MIB
"""What CUDA, cuBLAS and the loaded kernels take before the first tensor; 0.3 to 0.55 GB by card."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What there is, in bytes."""

    gpu_total: int | None = None
    """The card; None: no card, everything goes to system memory."""
    gpu_free: int | None = None
    """What of the card nobody uses; None: all of it."""
    cpu_available: int | None = None
    """System memory that can be had; None: not known, so never too little."""
    gpu_name: str | None = None
    reserve: int = 512 * MIB
    """Left free on the card."""
    repacked: frozenset[str] = ALL_REPACKED
    """Tensor types that this CPU repacks (`repacked_types`)."""
    cuda_context: int = CUDA_CONTEXT
    gpu_bus_id: str = ""
    """The card's place on the PCI bus, `0000:3b:00.0`."""

    @property
    def has_gpu(self) -> bool:
        """Whether there is a card to plan for."""
        return self.gpu_total is not None

    @property
    def gpu_limit(self) -> int:
        """Bytes of the card that a plan may take; 0 without a card."""
        if self.gpu_total is None:
            return 0
        free = self.gpu_total if self.gpu_free is None else min(self.gpu_free, self.gpu_total)
        return max(free - self.reserve, 0)
