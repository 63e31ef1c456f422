"""The plan as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.catalog.plan.choosing import KV_ORDER, Choice, gib, most_slots
from server.catalog.plan.compute import is_replayed
from server.catalog.plan.kv import KV_BLOCKS
from server.catalog.plan.memory import Memory
from server.catalog.plan.planning import Planner
from server.catalog.plan.plans import Plan
from server.catalog.plan.shape import ModelShape
from server.catalog.plan.wishes import Wishes

_CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
_STEPS = 8
_MIB = 1 << 20


def render(
    shape: ModelShape,
    wishes: Wishes,
    memory: Memory,
    choice: Choice,
    *,
    every_layer: bool = False,
) -> str:
    """Write model, machine, layers, KV types, what fits, and the chosen plan's parts."""
    planner = Planner(shape, memory)
    shown = choice.best or planner.plan(wishes)
    wishes = _placed(wishes, shown)
    base = replace(
        wishes,
        n_gpu_layers=shown.n_gpu_layers,
        n_cpu_moe=shown.n_cpu_moe,
    )
    sections = [
        _head(shape, wishes, memory),
        _layer_table(planner, wishes, shown, every_layer=every_layer),
        _kv_table(planner, base),
        _fit_table(planner, base, shape),
        _breakdown(shown, memory),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _placed(wishes: Wishes, shown: Plan) -> Wishes:
    """Return the wishes with the draft model where `shown` has it."""
    if wishes.draft is None or shown.draft is None or not shown.n_gpu_layers:
        return wishes
    return replace(wishes, draft=replace(wishes.draft, on_gpu=shown.draft.n_gpu_layers > 0))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def mib(size: int) -> str:
    """Write bytes in whole MiB, rounded up."""
    return f"{-(-size // _MIB):,}"


def _head(shape: ModelShape, wishes: Wishes, memory: Memory) -> str:
    experts = f", experts in {shape.n_expert_layers} layers" if shape.n_expert_layers else ""
    files = len(shape.part_sizes)
    about = (
        f"{shape.name or shape.path}: {shape.architecture}, {shape.n_layer} layers{experts}, "
        f"{gib(shape.file_bytes)} in {files} file{'s' if files > 1 else ''}, "
        f"trained for {shape.n_ctx_train:,} tokens"
    )
    lines = [about]
    if wishes.draft is not None:
        draft = wishes.draft.shape
        lines.append(
            f"Drafts by {draft.name or draft.path}: {draft.architecture}, {draft.n_layer} layers, "
            f"{gib(draft.file_bytes)}"
        )
    if not is_replayed(shape):
        lines.append(
            f"Compute buffers of {shape.architecture} are an estimate with a margin, not a replay."
        )
    if memory.gpu_total is None:
        lines.append("No GPU: everything goes to system memory.")
    else:
        free = "" if memory.gpu_free is None else f", {gib(memory.gpu_free)} free"
        lines.append(
            f"{memory.gpu_name or 'GPU'}: {gib(memory.gpu_total)}{free}; {gib(memory.reserve)} stay free"
        )
    if memory.cpu_available is not None:
        lines.append(f"System memory: {gib(memory.cpu_available)} available")
    return "\n".join(lines)


def _layer_table(planner: Planner, wishes: Wishes, shown: Plan, *, every_layer: bool) -> str:
    if not planner.memory.has_gpu:
        return ""
    rows = [
        [
            "layers on GPU",
            "weights GPU",
            "weights CPU",
            "KV GPU",
            "compute",
            "total GPU",
            "total CPU",
            "",
        ]
    ]
    for plan in _layers(planner, wishes, shown, every_layer=every_layer):
        moe = plan.n_cpu_moe
        name = "all" if plan.n_gpu_layers == planner.all_layers else str(plan.n_gpu_layers)
        rows.append(
            [
                f"{name}, --n-cpu-moe {moe}" if moe else name,
                *(
                    mib(size)
                    for size in (
                        plan.weights_gpu,
                        plan.weights_cpu,
                        plan.kv_gpu,
                        plan.compute_gpu,
                        plan.total_gpu,
                        plan.total_cpu,
                    )
                ),
                "fits" if plan.fits else "too much",
            ]
        )
    title = f"With {shown.slots} × {shown.n_ctx} tokens, {shown.kv_type} KV (MiB):"
    return f"{title}\n{columns(rows)}"


def layer_plans(shape: ModelShape, wishes: Wishes, memory: Memory, shown: Plan) -> list[Plan]:
    """Plan every `n_gpu_layers` (and for mixtures some `n_cpu_moe`), with the sizes of `shown`."""
    planner = Planner(shape, memory)
    wishes = _placed(wishes, shown)
    return _layers(planner, wishes, shown, every_layer=True) if memory.has_gpu else [shown]


def slot_table(
    shape: ModelShape, wishes: Wishes, memory: Memory, shown: Plan
) -> dict[str, dict[str, int]]:
    """Return KV type → n_ctx → slots that fit at once, with the layers of `shown`."""
    wishes = _placed(wishes, shown)
    base = replace(wishes, n_gpu_layers=shown.n_gpu_layers, n_cpu_moe=shown.n_cpu_moe)
    planner = Planner(shape, memory)
    contexts, types = _columns_of(base, shape)
    return {kind: {str(n): most_slots(planner, base, kind, n) for n in contexts} for kind in types}


def _layers(planner: Planner, wishes: Wishes, shown: Plan, *, every_layer: bool) -> list[Plan]:
    fixed = replace(
        wishes,
        slots=shown.slots,
        n_ctx=shown.n_ctx,
        kv_cells=shown.kv_cells,
        kv_type=shown.kv_type,
    )
    return [
        planner.plan(replace(fixed, n_gpu_layers=layers, n_cpu_moe=moe))
        for layers, moe in _layer_steps(planner, shown, every_layer=every_layer)
    ]


def _layer_steps(planner: Planner, shown: Plan, *, every_layer: bool) -> list[tuple[int, int]]:
    """Pick rows: even steps, the chosen one, everything; for mixtures also experts kept aside."""
    whole = planner.all_layers
    count = whole if every_layer else _STEPS
    layers = {round(i * whole / count) for i in range(count + 1)} | {shown.n_gpu_layers}
    steps = [(count, 0) for count in sorted(layers)]
    if planner.shape.n_expert_layers:
        n_layer = planner.shape.n_layer
        parts = n_layer if every_layer else 4
        aside = {round(i * n_layer / parts) for i in range(1, parts + 1)} | {shown.n_cpu_moe}
        steps += [(whole, count) for count in sorted(aside - {0})]
    return steps


def _kv_table(planner: Planner, base: Wishes) -> str:
    types = [kind for kind in KV_BLOCKS if base.flash_attention != "off" or KV_BLOCKS[kind][0] == 1]
    plans = [planner.plan(replace(base, kv_type=kind)) for kind in types]
    rows = [
        ["KV type", *types],
        ["KiB per token", *(f"{plan.kv_per_token / 1024:.1f}" for plan in plans)],
    ]
    return columns(rows)


def _fit_table(planner: Planner, base: Wishes, shape: ModelShape) -> str:
    contexts, types = _columns_of(base, shape)
    rows = [["slots that fit at n_ctx", *(str(n) for n in contexts)]]
    for kind in types:
        counts = [most_slots(planner, base, kind, n) for n in contexts]
        rows.append([f"{kind} KV", *(str(count) if count else "-" for count in counts)])
    return columns(rows)


def _columns_of(base: Wishes, shape: ModelShape) -> tuple[list[int], tuple[str, ...]]:
    """Contexts and KV types of the table of what fits."""
    if base.n_ctx == "auto":
        contexts = [n for n in _CONTEXTS if n <= shape.n_ctx_train] or [shape.n_ctx_train]
    else:
        contexts = [int(base.n_ctx)]
    types: tuple[str, ...] = KV_ORDER if base.kv_type == "auto" else (base.kv_type,)
    if base.flash_attention == "off":
        types = tuple(kind for kind in types if KV_BLOCKS[kind][0] == 1)
    return contexts, types


def _breakdown(shown: Plan, memory: Memory) -> str:
    rows = [["MiB", "GPU", "CPU"]]
    parts = _parts(shown)
    if draft := shown.draft:
        shared = memory.cuda_context if draft.overhead else 0
        parts += [
            (f"draft model: {name}", gpu - (shared if name == "overhead" else 0), cpu)
            for name, gpu, cpu in _parts(draft)
        ]
    for name, gpu, cpu in (*parts, ("total", shown.total_gpu, shown.total_cpu)):
        rows.append([name, mib(gpu), mib(cpu)])
    if shown.reclaimable_cpu:
        rows.append(["of it, file pages read once", mib(0), mib(shown.reclaimable_cpu)])
    return columns(rows if shown.limit_gpu else [[row[0], row[2]] for row in rows])


def _parts(plan: Plan) -> list[tuple[str, int, int]]:
    """Name each part of one model, with its bytes on the card and in system memory."""
    split = ", split" if plan.kv_layout == "split" else ""
    scores = "" if plan.flash_attention else ", no flash attention"
    kv = f"KV, {plan.kv_cells} cells of {plan.kv_type}{split}"
    return [
        ("weights", plan.weights_gpu, plan.weights_cpu),
        (kv, plan.kv_gpu, plan.kv_cpu),
        (f"compute, {plan.n_ubatch} rows{scores}", plan.compute_gpu, plan.compute_cpu),
        ("logits", 0, plan.output_cpu),
        ("overhead", plan.overhead, plan.overhead_cpu),
    ]


def verdict(model: str, choice: Choice, draft: str | None = None) -> str:
    """Say what to run, or what would fit instead; `draft`: the draft model's name."""
    if choice.best is not None:
        return f"Best: {choice.reason}.\nRun:  {choice.best.command(model, draft)}\n"
    lines = [f"Does not fit: {choice.reason}."]
    if not choice.alternatives:
        lines.append("Nothing fits: choose a smaller quantization or model.")
        return "\n".join(lines) + "\n"
    lines.append("What would fit:")
    lines += [f"  {plan.command(model, draft)}" for plan in choice.alternatives]
    return "\n".join(lines) + "\n"
