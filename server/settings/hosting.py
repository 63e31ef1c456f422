"""Settings of several models in one process: which, under what memory, and where they come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.settings.quantities import Duration, FilePath, Kind, Size
from server.settings.values import (
    AutoKvType,
    Cells,
    ContextLength,
    CpuExperts,
    GpuLayers,
    PositiveInt,
    Section,
    Slots,
)


class ServedModelSettings(Section):
    """One further model. What is null comes from its Modelfile, else from `engine` and `model`."""

    from_: Annotated[str, Field(min_length=1, alias="from")] = Field(
        alias="from",
        description="a GGUF file, a catalogue name, hf:owner/repo[:quant], or a Modelfile",
    )
    preload: bool = Field(default=False, description="load it at start, not at the first request")
    keep_alive: Annotated[Duration | None, Kind("duration")] = Field(
        None, description="idle time after which it is unloaded; null: never"
    )
    slots: Slots | None = Field(None, description="as engine.slots")
    n_ctx: ContextLength | None = Field(None, description="as engine.n_ctx")
    kv_cells: Cells | None = Field(None, description="as engine.kv_cells")
    kv_type: AutoKvType | None = Field(None, description="as engine.kv_type")
    n_gpu_layers: GpuLayers | None = Field(None, description="as model.n_gpu_layers")
    n_cpu_moe: CpuExperts | None = Field(None, description="as model.n_cpu_moe")
    draft: FilePath | None = Field(
        None, description="as model.draft; null: that of `model`, where the weights are the same"
    )
    pin: bool | None = Field(
        None, description="keep its agent's own prompt ready; null: what its Modelfile says, or no"
    )
    max_tokens: PositiveInt | None = Field(None, description="as engine.default_max_tokens")


class MemorySettings(Section):
    """What all models together may use."""

    vram: Annotated[Size | None, Kind("size")] = Field(
        None, description="GPU memory for all models together; null: all of the card's"
    )
    ram: Annotated[Size | None, Kind("size")] = Field(
        None, description="system memory for all models together; null: what is available"
    )
    reserve: Size = Field(
        512 * 2**20, description="memory that is left free, on the card or, without one, in RAM"
    )


class HubSettings(Section):
    """Where weights are downloaded from."""

    token: Annotated[str | None, Field(min_length=1), Kind("secret")] = Field(
        None, description="access token for private repositories; null: what HF_TOKEN says"
    )
    endpoint: str | None = Field(
        None, description="base URL of the hub or a mirror; null: what HF_ENDPOINT says, or the hub"
    )
    cache: FilePath | None = Field(
        None, description="the hub's own cache; null: what HF_HUB_CACHE says, or ~/.cache/…/hub"
    )
    ollama: FilePath | None = Field(
        None, description="Ollama's models; null: what OLLAMA_MODELS says, or its usual places"
    )
    offline: bool = Field(
        default=False, description="download nothing; HF_HUB_OFFLINE=1 says so too"
    )
