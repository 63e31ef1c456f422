"""The sizes of one context, settled: numbers where the settings may say `auto`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.settings import EngineSettings, ModelSettings
from server.settings.values import KvType

_SLOTS, _CONTEXT = 4, 4096


@dataclass(frozen=True, slots=True)
class Sizes:
    """What decides how much memory a context takes, besides its weights."""

    slots: int
    n_ctx: int
    """Tokens of one sequence."""
    kv_cells: int
    """Tokens of the whole pool."""
    kv_type: KvType
    n_gpu_layers: int | Literal["auto", "all"]
    n_cpu_moe: int


def unplanned(model: ModelSettings, engine: EngineSettings) -> Sizes:
    """Take the defaults for what is `auto`, where nobody plans."""
    slots = _SLOTS if engine.slots == "auto" else engine.slots
    n_ctx = _CONTEXT if engine.n_ctx == "auto" else engine.n_ctx
    cells, kind = engine.effective_kv_cells, engine.effective_kv_type
    return Sizes(
        slots=slots,
        n_ctx=n_ctx,
        kv_cells=slots * n_ctx if cells == "auto" else cells,
        kv_type="f16" if kind == "auto" else kind,
        n_gpu_layers=model.n_gpu_layers,
        n_cpu_moe=0 if model.n_cpu_moe == "auto" else model.n_cpu_moe,
    )
