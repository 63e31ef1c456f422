"""The engine of one context: settings to llama.cpp parameters, scheduler limits, a loader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from server.assembly.drafting import draft_params
from server.assembly.sizing import Sized
from server.catalog.gguf import check_parts
from server.catalog.plan import Allocated, Plan, compare, describe, read_shape
from server.core.clock import Clock
from server.core.errors import ConfigError, ModelFileError, OnegpuError
from server.engine.host_memory import HostBudget
from server.engine.inprocess import InProcessEngine
from server.engine.interface import Backend, BackendLoader
from server.engine.limits import SchedulerLimits
from server.engine.pins import FindPins
from server.gateway.prompter import Prompter
from server.llama.arena import Arena
from server.llama.params import LlamaParams

log = logging.getLogger(__name__)

_COLD_STEPS_CPU = 32
_COLD_STEPS_GPU = 2048
"""Steps in which idle cells cost as much as a copy to host memory and back. On a card they are read at its memory's
speed and copied at the bus's, so it takes far more."""


def llama_params(sized: Sized) -> LlamaParams:
    """Map settings and sizes to one model and one context. Raises `ConfigError`."""
    model, engine, sizes = sized.group.model, sized.group.engine, sized.sizes
    rope = model.rope_scaling
    return LlamaParams(
        path=model.path,
        slots=sizes.slots,
        n_ctx=sizes.n_ctx,
        kv_cells=sizes.kv_cells,
        n_gpu_layers=sizes.n_gpu_layers,
        n_cpu_moe=sizes.n_cpu_moe,
        adapter=model.adapter,
        adapter_scale=model.adapter_scale,
        main_gpu=model.main_gpu,
        mmap=model.mmap,
        mlock=model.mlock,
        extra_buffers=model.extra_buffers,
        rope_scaling=rope.type or "auto",
        rope_freq_base=rope.freq_base or 0.0,
        rope_freq_scale=rope.freq_scale or 0.0,
        yarn_orig_ctx=rope.orig_ctx or 0,
        yarn_ext_factor=rope.ext_factor,
        yarn_attn_factor=rope.attn_factor,
        yarn_beta_fast=rope.beta_fast,
        yarn_beta_slow=rope.beta_slow,
        flash_attention="on" if sizes.flash_attention else "off",
        kv_type=sizes.kv_type,
        layout=sizes.kv_layout,
        n_batch=engine.n_batch,
        draft_rows=sizes.draft_rows,
        n_ubatch=engine.effective_n_ubatch,
        threads=engine.effective_threads,
        threads_batch=engine.effective_threads_batch,
        warmup=engine.warmup,
        draft=draft_params(sized.group, sized.plan),
    )


def scheduler_limits(sized: Sized) -> SchedulerLimits:
    """Sizes for admission and planning. A step never exceeds one ubatch, except row by row."""
    engine, sizes = sized.group.engine, sized.sizes
    params = llama_params(sized)
    rows = params.n_batch if engine.deterministic else engine.effective_n_ubatch
    rows = min(rows, params.effective_n_batch)
    try:
        return SchedulerLimits(
            slots=sizes.slots,
            n_ctx=sizes.n_ctx,
            kv_cells=sizes.kv_cells,
            max_rows=rows,
            reuse_align=params.reuse_align,
            cold_steps=_COLD_STEPS_GPU if sized.footprint.gpu else _COLD_STEPS_CPU,
            prefill_rows=min(engine.effective_max_prefill_rows, rows),
            prefill_rows_decoding=min(engine.effective_max_prefill_rows_decoding, rows),
            draft_rows=sizes.draft_rows,
            target_gap=engine.target_gap,
        )
    except ValueError as error:
        raise ConfigError(f"engine: {error}") from error


LastWords = Callable[[str], None]
"""Keeps what native code says when it aborts."""


def build_engine(
    sized: Sized,
    prompters: Sequence[Prompter],
    clock: Clock,
    last_words: LastWords | None = None,
    host: HostBudget | None = None,
    pins: FindPins | None = None,
    arena: Arena | None = None,
) -> InProcessEngine:
    """Make an engine that loads the model when it is started. Raises `ConfigError`.

    `host`: the memory that all engines may keep prefixes in; `pins`: which of them for good; `arena`: where they are.
    """
    load = _loader(llama_params(sized), sized, prompters, last_words, arena)
    return InProcessEngine(load, scheduler_limits(sized), clock, host, pins)


def _loader(
    params: LlamaParams,
    sized: Sized,
    prompters: Sequence[Prompter],
    last_words: LastWords | None,
    arena: Arena | None,
) -> BackendLoader:
    """Load in the engine thread; templates are compiled before the engine counts as ready."""

    def load(progress: Callable[[float], None]) -> Backend:
        # Imported here: loading the native library would delay the first HTTP answer.
        from server.llama.loading import load_backend  # noqa: PLC0415
        from server.llama.native import library  # noqa: PLC0415
        from server.llama.probe import probe  # noqa: PLC0415

        # Some files abort llama.cpp: what the header does not show, a child process finds out.
        _check_planned(sized)
        progress(0.0)
        probe(params.path, params.adapter)
        if params.draft is not None:
            probe(params.draft.path)
        if last_words is not None:
            library().log.last_words = last_words
        backend = load_backend(params, arena)(progress)
        try:
            for prompter in prompters:
                prompter.bind(backend.info, backend.tokenizer)
        except OnegpuError:
            backend.shutdown()
            raise
        _report(backend.info.path, getattr(backend, "allocated", None), sized.plan)
        if sized.plan.draft is not None:
            drafted = getattr(backend, "draft_allocated", None)
            _report(str(sized.group.model.draft), drafted, sized.plan.draft)
        return backend

    return load


def _check_planned(sized: Sized) -> None:
    """Raise `ModelFileError` if a file is unsound, or not the one that memory was planned for.

    A model is loaded again and again while the server runs; meanwhile its file may be replaced.
    """
    for path, planned in (
        (sized.group.model.path, sized.shape),
        (sized.group.model.draft, sized.draft),
    ):
        if path is None or planned is None:
            continue
        now = read_shape(check_parts(path))
        if (now.layers, now.weights, now.n_vocab) != (
            planned.layers,
            planned.weights,
            planned.n_vocab,
        ):
            raise ModelFileError(
                f"{path} was replaced by a model of another shape since the server started, so what it "
                "takes was not planned for. Restart the server."
            )


def _report(path: str, allocated: Allocated | None, plan: Plan) -> None:
    """Log what llama.cpp allocated beside what was planned."""
    if allocated is None:
        return
    differences = compare(plan, allocated)
    level = logging.WARNING if any(one.over for one in differences) else logging.INFO
    log.log(level, "%s: %s", path, describe(differences))
