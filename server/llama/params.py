"""How to load a model, and every check that can be made before llama.cpp is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.core.errors import ConfigError

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Layout = Literal["auto", "unified", "split"]
FlashAttention = Literal["auto", "on", "off"]
RopeScaling = Literal["auto", "none", "linear", "yarn", "longrope"]

KV_TYPES: dict[str, int] = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
}
"""`ggml_type` numbers (ggml.h)."""

ROPE_SCALINGS: dict[str, int] = {"auto": -1, "none": 0, "linear": 1, "yarn": 2, "longrope": 3}
"""`llama_rope_scaling_type` numbers (llama.h)."""

_UNQUANTIZED = frozenset({"f32", "f16", "bf16"})
_MOST_SEQUENCES = 256
"""`LLAMA_MAX_SEQ`."""
_MOST_LAYERS = 512
"""`LLAMA_MAX_LAYERS`."""
_PADDING = 256
"""llama.cpp rounds contexts up to a multiple of this."""


@dataclass(frozen=True, slots=True)
class DraftParams:
    """A small model beside the main one, with a context of its own, that foresees what the main one will say."""

    path: Path
    n_gpu_layers: int | Literal["all"] = 0
    kv_type: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    layout: Layout = "auto"


@dataclass(frozen=True, slots=True)
class LlamaParams:
    """One model and one context. Construction raises `ConfigError` for values that cannot work."""

    path: Path
    slots: int = 4
    """Sequences that run at once."""
    n_ctx: int = 4096
    """Most tokens of one sequence."""
    kv_cells: int | None = None
    """Cells of the whole pool; None is slots × n_ctx. The split layout always has slots × n_ctx."""
    n_gpu_layers: int | Literal["auto", "all"] = "auto"
    """`auto`: none on a CPU build, else all."""
    n_cpu_moe: int = 0
    """Expert weights of the first so many layers stay in system memory (llama.cpp's
    `--n-cpu-moe`); models without experts have none to keep."""
    adapter: Path | None = None
    """A LoRA adapter's GGUF, applied to the context."""
    adapter_scale: float = 1.0
    """Factor on the adapter's weights; 0 makes it do nothing."""
    main_gpu: int = 0
    mmap: bool = True
    mlock: bool = False
    extra_buffers: bool = True
    """Repack weights for the CPU's vector units, into memory of their own, where there is no card."""
    rope_scaling: RopeScaling = "auto"
    rope_freq_base: float = 0.0
    """0 takes the model's own, as for the next."""
    rope_freq_scale: float = 0.0
    yarn_orig_ctx: int = 0
    yarn_ext_factor: float | None = None
    """None takes the model's own, as for the next three."""
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    flash_attention: FlashAttention = "auto"
    """`auto`: on. What is served says on or off (`catalog.plan.attention`). Without it V cannot be quantized, and to
    save cells of the unified layout that do not follow each other takes as long as to compute them."""
    kv_type: KvType = "f16"
    kv_type_v: KvType | None = None
    """None: as `kv_type`."""
    layout: Layout = "auto"
    """`auto`: unified, but split for row by row. What is served says which."""
    n_batch: int = 512
    """Most rows of one decode call."""
    n_ubatch: int = 512
    """Most rows of one computed graph."""
    draft_rows: int = 0
    """Most rows of one decode call for tokens of drafts, over all slots. Each gives logits, which take n_vocab floats
    twice."""
    draft: DraftParams | None = None
    """Who foresees tokens where the text does not repeat. Needs `draft_rows`."""
    threads: int = 1
    """Threads for graphs of one row; `server.settings` knows the machine's cores."""
    threads_batch: int | None = None
    """Threads for graphs of more than one row; None: as `threads`."""
    warmup: bool = True
    """Decode once at load, so that the first request does not pay for page faults."""

    def __post_init__(self) -> None:
        """Refuse what llama.cpp would answer with an abort, a silent change or a vague failure."""
        _require(
            1 <= self.slots <= _MOST_SEQUENCES,
            f"slots must be 1 to {_MOST_SEQUENCES}, not {self.slots}",
        )
        _require(8 <= self.n_ctx <= 2**24, f"n_ctx must be 8 to {2**24} tokens, not {self.n_ctx}")
        _require(
            self.total_cells <= 2**28, f"kv_cells must be at most {2**28}, not {self.total_cells}"
        )
        _require(
            self.total_cells >= self.n_ctx,
            f"kv_cells ({self.kv_cells}) must hold at least one full context: raise it, or lower n_ctx ({self.n_ctx})",
        )
        _require(self.n_ubatch >= 1, f"n_ubatch must be at least 1, not {self.n_ubatch}")
        _require(
            self.n_batch >= self.slots,
            f"n_batch ({self.n_batch}) must be at least slots ({self.slots}): every running request needs a row",
        )
        _require(
            self.n_batch >= self.n_ubatch,
            f"n_ubatch ({self.n_ubatch}) must not be larger than n_batch ({self.n_batch})",
        )
        _require(
            0 <= self.draft_rows <= 1024 and not (self.draft_rows and self.row_by_row),
            f"draft_rows must be 0 to 1024, and 0 row by row, not {self.draft_rows}",
        )
        _require(
            self.draft is None or self.draft_rows,
            "a draft model needs draft_rows, and more than one row per graph: leave it out in deterministic mode, "
            "without speculation and for recurrent models",
        )
        _require(self.n_batch <= 2**16, f"n_batch must be at most {2**16}, not {self.n_batch}")
        for name, value in (("kv_type", self.kv_type), ("kv_type_v", self.kv_type_v)):
            known = value is None or value in KV_TYPES
            _require(known, f"{name} must be one of {', '.join(KV_TYPES)}, not {value!r}")
        _require(
            self.flash_attention != "off" or self.value_type in _UNQUANTIZED,
            f"a {self.value_type} value cache needs flash attention: "
            "set flash_attention to auto or on, or kv_type to f16",
        )
        _require(
            self.layout in ("auto", "unified", "split"),
            f"layout must be auto, unified or split, not {self.layout!r}",
        )
        _require(
            self.rope_scaling in ROPE_SCALINGS,
            f"rope_scaling must be one of {', '.join(ROPE_SCALINGS)}",
        )
        _require(
            self.rope_freq_base >= 0.0 and self.rope_freq_scale >= 0.0 and self.yarn_orig_ctx >= 0,
            "rope_freq_base, rope_freq_scale and yarn_orig_ctx must be 0 (the model's own) or positive",
        )
        _require(
            not self.unified or self.kv_cells is None or self.kv_cells >= self.slots,
            "kv_cells must be at least slots",
        )
        _require(
            self.unified or self.kv_cells in (None, self.slots * self.n_ctx),
            "the split layout, which deterministic mode takes too, gives every slot n_ctx cells: "
            "leave kv_cells out, or take the unified layout",
        )
        layers = self.n_gpu_layers
        _require(
            layers in ("auto", "all") or (isinstance(layers, int) and layers >= 0),
            f"n_gpu_layers must be auto, all or a number of layers, not {layers!r}",
        )
        _require(
            0 <= self.n_cpu_moe <= _MOST_LAYERS,
            f"n_cpu_moe must be a number of layers, 0 to {_MOST_LAYERS}, not {self.n_cpu_moe}",
        )
        _require(
            math.isfinite(self.adapter_scale),
            f"adapter_scale must be a finite number, not {self.adapter_scale}",
        )
        _require(
            0 <= self.main_gpu < 64, f"main_gpu must be a device number from 0, not {self.main_gpu}"
        )
        for name, threads in (("threads", self.threads), ("threads_batch", self.threads_batch)):
            known = threads is None or 1 <= threads <= 512
            _require(known, f"{name} must be 1 to 512, not {threads}")

    def drafting(self) -> LlamaParams | None:
        """Return how the draft model is loaded: as many slots of as many cells, a ubatch to a call; None without one.

        Raises `ConfigError` for values that cannot work.
        """
        if self.draft is None:
            return None
        rows = min(self.n_ubatch, self.effective_n_batch)
        return LlamaParams(
            path=self.draft.path,
            slots=self.slots,
            n_ctx=self.n_ctx,
            n_gpu_layers=self.draft.n_gpu_layers,
            main_gpu=self.main_gpu,
            mmap=self.mmap,
            mlock=self.mlock,
            extra_buffers=self.extra_buffers,
            flash_attention=self.draft.flash_attention,
            kv_type=self.draft.kv_type,
            layout=self.draft.layout,
            n_batch=max(rows, self.slots),
            n_ubatch=rows,
            threads=self.threads,
            threads_batch=self.threads_batch,
            warmup=self.warmup,
        )

    @property
    def unified(self) -> bool:
        """Whether all slots share one pool of cells."""
        return self.layout == "unified" or (self.layout == "auto" and not self.row_by_row)

    @property
    def flash(self) -> bool:
        """Whether attention is computed without storing its scores."""
        return self.flash_attention != "off"

    @property
    def row_by_row(self) -> bool:
        """Whether every row is computed by itself (`n_ubatch` 1): the deterministic mode.

        Bits then depend on nothing that runs beside. That takes the split layout too: in a unified
        pool the neighbours decide the order of a sequence's cells, and sums follow that order.
        """
        return self.n_ubatch == 1

    @property
    def outputs(self) -> int:
        """Most rows of one decode call that give logits: one of each slot, and those of drafts."""
        return self.slots + self.draft_rows

    @property
    def reuse_align(self) -> int:
        """Rows at multiples of which reuse of cached tokens has to end so that it changes no bit; else 1.

        With a Q8_0 cache a multiple of 8 is enough. No other type promises anything (F16 would need 64), and row by
        row everything does.
        """
        return 8 if self.kv_type == self.value_type == "q8_0" and not self.row_by_row else 1

    @property
    def total_cells(self) -> int:
        """Cells asked of llama.cpp, over all slots."""
        if self.unified and self.kv_cells is not None:
            return self.kv_cells
        return self.slots * self.n_ctx

    @property
    def native_n_ctx(self) -> int:
        """`llama_context_params.n_ctx`: split contexts are rounded up one by one, as llama.cpp would do."""
        if self.unified:
            return self.total_cells
        return self.slots * -(-self.n_ctx // _PADDING) * _PADDING

    @property
    def value_type(self) -> KvType:
        """Type of the V cache."""
        return self.kv_type if self.kv_type_v is None else self.kv_type_v

    @property
    def effective_n_batch(self) -> int:
        """Rows of one decode call that llama.cpp will really take: never more than cells."""
        return min(self.n_batch, self.native_n_ctx)

    @property
    def batch_thread_count(self) -> int:
        """Threads to compute several rows with."""
        return self.threads_batch if self.threads_batch is not None else self.threads


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ConfigError(message[0].upper() + message[1:] + ".")
