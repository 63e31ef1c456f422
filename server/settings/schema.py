"""Every setting, with its default, its range and what it means; frozen once read.

Where a default depends on another setting the field is None, and an `effective_…` property has the
value in force. onegpu.example.yaml and docs/settings.md list the same keys; a test compares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from server.engine.prefix_index import MIN_PREFILL_ROWS
from server.settings.aliases import Aliases
from server.settings.gateway import GatewaySettings
from server.settings.hosting import HubSettings, MemorySettings, ServedModelSettings
from server.settings.machine import physical_cores
from server.settings.quantities import AutoSize, Duration, FilePath, Kind, Size
from server.settings.relations import Conflicts, draft_conflict, engine_conflicts, guard_conflicts
from server.settings.remotes import RemoteSettings
from server.settings.values import (
    AutoKvType,
    Cells,
    ContextLength,
    CpuExperts,
    Factor,
    GpuLayers,
    HostNames,
    KvType,
    ModelName,
    Origins,
    PositiveInt,
    Section,
    Slots,
    whole_as_float,
)


class RopeSettings(Section):
    """How positions beyond the trained context are handled; null keeps what the GGUF says."""

    type: Literal["none", "linear", "yarn"] | None = Field(
        None, description="scaling method: none, linear or yarn"
    )
    freq_base: Factor | None = Field(None, description="RoPE base frequency")
    freq_scale: Factor | None = Field(
        None, description="RoPE frequency factor, 0.25 for 4× context"
    )
    orig_ctx: PositiveInt | None = Field(None, description="context in tokens trained, for yarn")
    ext_factor: Factor | None = Field(None, description="yarn extrapolation mix")
    attn_factor: Factor | None = Field(None, description="yarn attention magnitude factor")
    beta_fast: Factor | None = Field(None, description="yarn low correction dimension")
    beta_slow: Factor | None = Field(None, description="yarn high correction dimension")


class ModelSettings(Section):
    """Which weights to load, and where they live."""

    path: FilePath = Field(
        Path("models/demo.gguf"),
        description="a GGUF file, a catalogue name, hf:owner/repo[:quant], or a Modelfile",
    )
    name: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="the id that clients ask for; null takes the file's name without .gguf"
    )
    keep_alive: Annotated[Duration | None, Kind("duration")] = Field(
        None, description="idle time after which the model is unloaded; null: never"
    )
    n_gpu_layers: GpuLayers = Field(
        "auto", description="layers on the GPU: a number, all, or auto: as many as fit"
    )
    n_cpu_moe: CpuExperts = Field(
        0, description="layers whose experts stay in system memory, or auto; mixture models only"
    )
    main_gpu: Annotated[int, Field(ge=0)] = Field(0, description="index of the GPU to use")
    mmap: bool = Field(default=True, description="map the file instead of reading it into memory")
    mlock: bool = Field(default=False, description="lock the weights into RAM; never swap them out")
    extra_buffers: bool = Field(
        default=True,
        description="repack weights for this CPU where llama.cpp can: faster decode, slower prefill",
    )
    chat_template: FilePath | None = Field(
        None, description="a Jinja file to use instead of the GGUF's own chat template"
    )
    adapter: FilePath | None = Field(
        None, description="a LoRA adapter's GGUF, made for this very model"
    )
    adapter_scale: Annotated[float, BeforeValidator(whole_as_float)] = Field(
        1.0, description="factor on the adapter's weights; 1 is as it was trained"
    )
    draft: FilePath | None = Field(
        None,
        description="a small model of the same vocabulary, which foresees tokens; named as path is",
    )
    rope_scaling: RopeSettings = Field(
        default_factory=RopeSettings, description="context extension; all null keeps the GGUF's"
    )


class EngineSettings(Section):
    """The slot pool, the KV cache and the batches."""

    slots: Slots = Field(
        4, description="requests that run at once, or auto; the others wait in line"
    )
    n_ctx: ContextLength = Field(
        4096, description="most tokens, prompt + output, that one request may use; or auto"
    )
    kv_cells: Cells | None = Field(
        None, description="size of the KV cache in tokens, or auto; null: slots × n_ctx"
    )
    kv_type: AutoKvType = Field(
        "f16", description="KV cache precision, or auto; q8_0 takes 53 % of f16's memory"
    )
    kv_layout: Literal["auto", "unified", "split"] = Field(
        "auto",
        description="one KV buffer for all slots (unified) or one each (split); auto: split on a CPU",
    )
    flash_attention: Literal["auto", "on", "off"] = Field(
        "auto",
        description="flash attention; auto: on, but in a CPU's split layout; a quantized kv_type needs it",
    )
    host_cache: AutoSize = Field(
        "auto",
        description="system memory for prefixes that leave the KV cache, all models together; 0: none",
    )
    threads: Annotated[int, Field(ge=1, le=512)] | None = Field(
        None, description="CPU threads while generating; null: the physical cores"
    )
    threads_batch: Annotated[int, Field(ge=1, le=512)] | None = Field(
        None, description="CPU threads while reading prompts; null: same as threads"
    )
    n_batch: Annotated[int, Field(ge=32)] = Field(
        2048, description="most tokens in one decode call"
    )
    n_ubatch: PositiveInt = Field(512, description="most tokens in one compute graph")
    max_prefill_rows: Annotated[int, Field(ge=MIN_PREFILL_ROWS)] | None = Field(
        None, description="prompt tokens per step while nothing generates; null: n_ubatch"
    )
    max_prefill_rows_decoding: Annotated[int, Field(ge=MIN_PREFILL_ROWS)] | None = Field(
        None,
        description="most prompt tokens per step while streams generate; null: target_gap alone",
    )
    target_gap: Annotated[Duration | None, Kind("duration")] = Field(
        0.3,
        gt=0,
        description="most time of a step while streams generate, but 64 rows on a CPU; null: throughput first",
    )
    speculation: Literal["auto", "off"] = Field(
        "auto",
        description="foresee text that repeats, where that pays; which text comes stays as it is",
    )
    max_draft: Annotated[int, Field(ge=1, le=512)] = Field(
        32,
        description="most foreseen tokens per step, all slots together; each takes two rows of logits",
    )
    default_max_tokens: PositiveInt = Field(
        2048, description="output limit in tokens of a request that names none"
    )
    deterministic: bool = Field(
        default=False,
        description="same text whatever runs beside it; q8_0, split, row by row: prefill takes 3×",
    )
    stall_after: Annotated[Duration, Field(gt=0)] = Field(
        60.0,
        description="no step ended for so long although there is work: requests end, /health/live fails",
    )
    warmup: bool = Field(
        default=True, description="decode once before the first request, a full batch on a GPU"
    )

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        conflicts = engine_conflicts(self)
        if conflicts:
            raise Conflicts(conflicts)
        return self

    @property
    def effective_kv_cells(self) -> int | Literal["auto"]:
        """Cells of the pool; `auto` where they follow from what is."""
        if self.kv_cells is not None:
            return self.kv_cells
        slots, n_ctx = self.slots, self.n_ctx
        return "auto" if slots == "auto" or n_ctx == "auto" else slots * n_ctx

    @property
    def effective_kv_type(self) -> KvType | Literal["auto"]:
        """KV precision; deterministic mode forces q8_0."""
        return "q8_0" if self.deterministic else self.kv_type

    @property
    def effective_n_ubatch(self) -> int:
        """Rows of one graph, at most n_batch; deterministic mode forces 1."""
        return 1 if self.deterministic else min(self.n_ubatch, self.n_batch)

    @property
    def effective_draft_rows(self) -> int:
        """Most rows of drafts in a step; none in deterministic mode, whose graphs have one row."""
        off = self.speculation == "off" or self.deterministic or self.n_ubatch == 1
        return 0 if off else min(self.max_draft, self.effective_n_ubatch)

    @property
    def effective_max_prefill_rows(self) -> int:
        """Prefill rows per step while nothing decodes."""
        if self.max_prefill_rows is not None:
            return self.max_prefill_rows
        return min(self.n_ubatch, self.n_batch) if self.n_ubatch > 1 else self.n_batch

    @property
    def effective_max_prefill_rows_decoding(self) -> int:
        """Prefill rows per step while streams decode, at most n_batch."""
        most = self.max_prefill_rows_decoding
        return self.effective_max_prefill_rows if most is None else min(most, self.n_batch)

    @property
    def effective_threads(self) -> int:
        """Threads while decoding."""
        return self.threads if self.threads is not None else physical_cores()

    @property
    def effective_threads_batch(self) -> int:
        """Threads while prefilling."""
        return self.threads_batch if self.threads_batch is not None else self.effective_threads


class ServerSettings(Section):
    """The HTTP side."""

    host: Annotated[str, Field(min_length=1)] = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 is every interface"
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000, description="port to listen on; 0 takes a free one"
    )
    allow_no_keys: bool = Field(
        default=False, description="without API keys, listen beyond this machine all the same"
    )
    open_metrics: bool = Field(default=False, description="/metrics asks for no API key")
    cors_origins: Origins = Field(
        (), description="origins whose web pages may use this server from a browser; or *"
    )
    host_names: HostNames = Field(
        (), description="names by which a server without keys is asked, beside localhost"
    )
    max_request_size: Annotated[Size, Field(ge=1)] = Field(
        10_000_000, description="largest request body; a larger one gets 413"
    )
    max_connections: PositiveInt = Field(
        1000, description="connections at a time; a further one gets 503"
    )
    header_timeout: Annotated[Duration, Field(gt=0)] = Field(
        30.0, description="longest time for a request's headers to come; then 408"
    )
    idle_timeout: Annotated[Duration, Field(gt=0)] = Field(
        120.0, description="how long a connection between two requests is kept open"
    )
    shutdown_grace: Duration = Field(
        30.0, description="how long running requests may go on after SIGTERM"
    )
    supervised: bool = Field(
        default=True, description="run the server in a second process and restart it when it dies"
    )
    access_log: bool = Field(default=True, description="log a line per request")


class LoggingSettings(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severity that is logged"
    )
    format: Literal["text", "json"] = Field(
        "text", description="text for people, json for log collectors"
    )


class Settings(Section):
    """The whole configuration."""

    model: ModelSettings = Field(default_factory=ModelSettings, description="the weights")
    models: dict[ModelName, ServedModelSettings] = Field(
        default_factory=dict, description="further models, by the name they are served under"
    )
    aliases: Aliases = Field(
        default_factory=dict,
        description="names that stand for served ones: NAME: MODEL, or NAME: {MODEL: weight, …}",
    )
    remotes: dict[ModelName, RemoteSettings] = Field(
        default_factory=dict, description="models of other servers, by the name they have here"
    )
    models_dir: FilePath = Field(
        Path("models"), description="where downloaded weights are kept and looked for"
    )
    data_dir: FilePath = Field(
        Path("~/.local/share/onegpu"), description="where API keys are kept, and later results"
    )
    modelfiles: FilePath | None = Field(
        None, description="a folder whose Modelfiles are all served, by their files' names"
    )
    memory: MemorySettings = Field(
        default_factory=MemorySettings, description="what the models may use"
    )
    hub: HubSettings = Field(default_factory=HubSettings, description="downloads")
    engine: EngineSettings = Field(default_factory=EngineSettings, description="slots and KV cache")
    gateway: GatewaySettings = Field(default_factory=GatewaySettings, description="admission")
    server: ServerSettings = Field(default_factory=ServerSettings, description="HTTP")
    logging: LoggingSettings = Field(default_factory=LoggingSettings, description="logs")

    @property
    def tuned_dir(self) -> Path:
        """Where `onegpu tune` keeps its profiles."""
        return self.data_dir / "tuned"

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        conflicts = list(guard_conflicts(self.gateway.gpu_guard, self.memory.reserve))
        if self.model.draft is not None and (conflict := draft_conflict(self.engine)):
            conflicts.append(conflict)
        if conflicts:
            raise Conflicts(conflicts)
        return self
