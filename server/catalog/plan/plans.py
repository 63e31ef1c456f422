"""`Plan`: one configuration of one model and its bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from server.catalog.plan.memory import Memory


@dataclass(frozen=True, slots=True)
class Plan:
    """One configuration and its bytes."""

    weights_gpu: int
    weights_cpu: int
    kv_per_token: int
    kv_gpu: int
    kv_cpu: int
    compute_gpu: int
    compute_cpu: int
    output_cpu: int
    """Logits that the sampler reads."""
    overhead: int
    """CUDA's own memory and its pools on the card."""
    overhead_cpu: int
    """The process beside llama.cpp's buffers."""
    total_gpu: int
    total_cpu: int
    reclaimable_cpu: int
    """Of `total_cpu`, pages of the mapped file that are read once, to copy them elsewhere: the system
    takes them back when it needs memory."""
    limit_gpu: int
    limit_cpu: int | None
    fits: bool
    n_gpu_layers: int
    n_cpu_moe: int
    n_layers: int
    """Layers that `n_gpu_layers` can count: blocks and output head."""
    slots: int
    n_ctx: int
    kv_cells: int
    kv_type: str
    kv_layout: str
    n_ubatch: int
    draft_rows: int
    flash_attention: bool
    estimated: bool
    """Whether compute buffers are an estimate with a margin, not a replay of llama.cpp's own."""
    draft: Plan | None = None
    """Of the draft model, as if it were alone. The totals and `fits` have it counted in; other fields do not."""

    @property
    def needed_cpu(self) -> int:
        """System memory without which it cannot run."""
        return self.total_cpu - self.reclaimable_cpu

    @property
    def all_kv(self) -> tuple[int, int]:
        """Bytes of all KV caches, the draft model's too, on the card and in system memory."""
        draft = self.draft
        return self.kv_gpu + (draft.kv_gpu if draft else 0), self.kv_cpu + (
            draft.kv_cpu if draft else 0
        )

    def as_json(self) -> dict[str, Any]:
        """Return all fields; sizes in bytes."""
        return asdict(self)

    def command(self, model: str, draft: object = None) -> str:
        """Write the command line that serves this plan; `draft`: the draft model's name."""
        parts = [
            f"onegpu serve {model}",
            *([] if draft is None else [f"--draft {draft}"]),
            f"--slots {self.slots}",
            f"--n-ctx {self.n_ctx}",
            f"--kv-type {self.kv_type}",
        ]
        if self.kv_cells != self.slots * self.n_ctx:
            parts.append(f"--kv-cells {self.kv_cells}")
        if self.limit_gpu:
            everything = self.n_gpu_layers >= self.n_layers
            parts.append(f"--n-gpu-layers {'all' if everything else self.n_gpu_layers}")
        if self.n_cpu_moe:
            parts.append(f"--n-cpu-moe {self.n_cpu_moe}")
        if self.kv_layout != "unified" or self.n_gpu_layers == 0:
            parts.append(f"--kv-layout {self.kv_layout}")
        return " ".join(parts)


def fits(gpu: int, cpu: int, memory: Memory) -> bool:
    """Whether so many bytes are there."""
    left = memory.cpu_available
    return gpu <= memory.gpu_limit and (left is None or cpu <= left)
