"""How large each context is to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from server.assembly.drafting import checked_draft
from server.assembly.grouping import Group
from server.assembly.wanted import naming
from server.catalog.gguf import check_parts
from server.catalog.plan import (
    Choice,
    DraftWish,
    Memory,
    ModelShape,
    Plan,
    RopeWish,
    Wishes,
    check_context,
    check_experts,
    choose,
    gib,
    read_shape,
)
from server.core.errors import ConfigError
from server.gateway.memory import Budget, Footprint
from server.llama.adapter import adapter_bytes, adapter_compute_bytes, check_adapter
from server.settings import ModelSettings
from server.settings.values import KvType

_MIB = 2**20
_MOST_SHOWN = 5


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
    kv_layout: Literal["unified", "split"]
    flash_attention: bool
    draft_rows: int
    """Rows of a step for tokens that are foreseen."""


@dataclass(frozen=True, slots=True)
class Sized:
    """A group with its sizes settled, and what they take."""

    group: Group
    shape: ModelShape
    sizes: Sizes
    plan: Plan
    reason: str
    """Why the planner chose so; empty where nothing was left to it."""
    footprint: Footprint
    draft: ModelShape | None = None
    """Of the draft model."""


def sized(groups: Sequence[Group], memory: Memory) -> list[Sized]:
    """Settle the sizes of all contexts. Raises `ConfigError` for one that cannot fit by itself.

    Those with `auto` sizes come last, so that they choose what fits beside the others.
    """
    found: dict[str, Sized] = {}
    left = memory
    for group in sorted(groups, key=_has_auto):
        shape, draft = _checked_shapes(group)
        with naming(group.name):
            here, beside = _repacking(memory, group), _repacking(left, group)
            found[group.name] = one = _size(group, shape, draft, here, beside)
        left = _less(left, one.footprint)
    return [found[group.name] for group in groups]


def budget_of(memory: Memory) -> Budget:
    """What all models together may take; CUDA's own memory is there once."""
    if not memory.has_gpu:
        return Budget(gpu=None, cpu=memory.cpu_available)
    return Budget(gpu=max(0, memory.gpu_limit - memory.cuda_context), cpu=memory.cpu_available)


def _has_auto(group: Group) -> bool:
    engine = group.engine
    return "auto" in (engine.slots, engine.n_ctx, engine.kv_cells, engine.kv_type)


def _checked_shapes(group: Group) -> tuple[ModelShape, ModelShape | None]:
    """Read the shapes of model and draft model, and hold each member's own wishes against the model's."""
    with naming(group.name):
        parts = check_parts(group.model.path)
        shape = read_shape(parts)
        draft = checked_draft(group, parts[0], shape)
        if group.model.adapter is not None:
            check_adapter(group.model.adapter, group.model.path)
    for member in group.members:
        engine, moe = member.engine, member.model.n_cpu_moe
        with naming(member.name):
            if engine.n_ctx != "auto" and "n_ctx" in engine.model_fields_set:
                check_context(shape, engine.n_ctx, _rope(member.model))
            check_experts(shape, moe)
    return shape, draft


def _repacking(memory: Memory, group: Group) -> Memory:
    """Return the memory as it is for a group: nothing is repacked where that is switched off."""
    return memory if group.model.extra_buffers else replace(memory, repacked=frozenset())


def _size(
    group: Group, shape: ModelShape, draft: ModelShape | None, memory: Memory, left: Memory
) -> Sized:
    wishes = _wishes(group, shape, draft)
    # Without a card, sizes that are given stay as they are, and flash attention may make room beside the others.
    gives_way = _has_auto(group) or not memory.has_gpu
    choice = choose(shape, wishes, left) if gives_way else Choice(None)
    if choice.best is None:
        choice = choose(shape, wishes, memory)
    best = choice.best
    if best is None:
        raise ConfigError(_refusal(group, choice))
    layers: int | Literal["auto", "all"] = best.n_gpu_layers
    if not memory.has_gpu:
        layers = group.model.n_gpu_layers
    elif best.n_gpu_layers >= best.n_layers:
        layers = "all"
    sizes = Sizes(
        slots=best.slots,
        n_ctx=best.n_ctx,
        kv_cells=best.kv_cells,
        kv_type=best.kv_type,  # type: ignore[arg-type] # one of the planner's own
        n_gpu_layers=layers,
        n_cpu_moe=best.n_cpu_moe,
        kv_layout="split" if best.kv_layout == "split" else "unified",
        flash_attention=best.flash_attention,
        draft_rows=best.draft_rows,
    )
    partly = memory.has_gpu and best.n_gpu_layers < best.n_layers
    told = choice.reason if partly or _has_auto(group) else ""
    footprint = _footprint(group, best, memory)
    if not budget_of(memory).holds(footprint):
        raise ConfigError(
            f"does not fit with its adapter, which the planner does not choose for: "
            f"together they need {gib(footprint.gpu)} of GPU and {gib(footprint.cpu)} of system "
            "memory. Lower slots, n_ctx or n_gpu_layers, or take a smaller kv_type."
        )
    return Sized(group, shape, sizes, best, told, footprint, draft)


def _wishes(group: Group, shape: ModelShape, draft: ModelShape | None) -> Wishes:
    model, engine = group.model, group.engine
    n_ctx, cells = engine.n_ctx, engine.kv_cells
    if "n_ctx" not in engine.model_fields_set and n_ctx != "auto":
        # The default is nobody's wish: a model that was trained for less gets what it can use.
        n_ctx = min(n_ctx, shape.n_ctx_train)
    return Wishes(
        slots=engine.slots,
        n_ctx=n_ctx,
        kv_cells="auto" if cells is None else cells,
        kv_type=engine.effective_kv_type,
        n_gpu_layers=model.n_gpu_layers,
        n_ubatch=engine.effective_n_ubatch,
        n_batch=engine.n_batch,
        draft_rows=engine.effective_draft_rows,
        kv_layout=engine.kv_layout,
        n_cpu_moe=model.n_cpu_moe,
        flash_attention=engine.flash_attention,
        mmap=model.mmap,
        mlock=model.mlock,
        draft=None if draft is None else DraftWish(draft),
    )


def _rope(model: ModelSettings) -> RopeWish:
    rope = model.rope_scaling
    return RopeWish(rope.type, rope.freq_base, rope.freq_scale, rope.orig_ctx)


def _footprint(group: Group, plan: Plan, memory: Memory) -> Footprint:
    adapter, extra = group.model.adapter, 0
    if adapter is not None:
        extra = adapter_bytes(adapter) + adapter_compute_bytes(adapter, plan.n_ubatch)
    if not memory.has_gpu:
        return Footprint(cpu=plan.needed_cpu + extra)
    return Footprint(gpu=plan.total_gpu - memory.cuda_context + extra, cpu=plan.needed_cpu)


def _less(memory: Memory, footprint: Footprint) -> Memory:
    """Return what is left beside a model."""
    cpu = memory.cpu_available
    left = None if cpu is None else max(0, cpu - footprint.cpu)
    if not memory.has_gpu:
        return replace(memory, cpu_available=left)
    free = memory.gpu_total if memory.gpu_free is None else memory.gpu_free
    return replace(memory, gpu_free=max(0, (free or 0) - footprint.gpu), cpu_available=left)


def _refusal(group: Group, choice: Choice) -> str:
    path, draft = str(group.model.path), group.model.draft
    lines = [f"does not fit: {choice.reason}."]
    if choice.alternatives:
        lines.append("What fits:")
        lines += [f"  {plan.command(path, draft)}" for plan in choice.alternatives[:_MOST_SHOWN]]
    else:
        lines.append("Choose a smaller model or quantization.")
    return "\n".join(lines)
