"""`plan`: what one configuration of one model takes, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.catalog.plan.allocator import padded
from server.catalog.plan.attention import with_attention
from server.catalog.plan.blocks import Run
from server.catalog.plan.compute import ComputeBytes, compute_bytes, is_replayed
from server.catalog.plan.drafting import Drafting
from server.catalog.plan.kv import KvBytes, allocated_cells, kv_bytes
from server.catalog.plan.memory import MIB, Memory
from server.catalog.plan.plans import Plan, fits
from server.catalog.plan.shape import ModelShape
from server.catalog.plan.weights import (
    Placement,
    WeightBytes,
    first_gpu_layer,
    weight_bytes,
)
from server.catalog.plan.wishes import Wishes, check_wishes

_PROCESS = 192 * MIB
"""Python, the libraries and the vocabulary."""
_BYTES_PER_TOKEN_TEXT = 320
"""Texts, pieces and hash entries of one vocabulary token, in llama.cpp and in Python."""
_COMPUTE_MARGIN = 20
"""CUDA's fused operations keep a few tensors longer: one part in so many is added to its buffer."""
_MANY_ROWS = 8
"""From so many rows for each slot on, a full ubatch is the larger graph beyond doubt."""

DEFAULT_SLOTS, DEFAULT_N_CTX = 4, 8192


@dataclass(frozen=True, slots=True)
class _Layout:
    """What lies where, before the graph is looked at, which takes the most time."""

    wishes: Wishes
    """With no `auto` left."""
    asked: Wishes
    """As they were."""
    cache: KvBytes
    where: Placement
    run: Run
    unified: bool


class Planner:
    """Plans configurations of one model for one machine, and remembers what they have in common."""

    def __init__(self, shape: ModelShape, memory: Memory) -> None:
        self.shape = shape
        self.memory = memory
        self._weights: dict[Placement, WeightBytes] = {}
        self._compute: dict[tuple[Placement, Run, int], ComputeBytes] = {}
        self._drafting = Drafting(memory, plan)

    @property
    def all_layers(self) -> int:
        """`n_gpu_layers` that puts everything on the GPU: the blocks and the output head."""
        return self.shape.n_layer + 1

    def resolve(self, wishes: Wishes) -> Wishes:
        """Replace every `auto` that is left by what is taken without a search."""
        layers = wishes.n_gpu_layers
        if not self.memory.has_gpu:
            layers = 0
        elif layers in ("auto", "all"):
            layers = self.all_layers
        slots = DEFAULT_SLOTS if wishes.slots == "auto" else wishes.slots
        n_ctx = (
            min(DEFAULT_N_CTX, self.shape.n_ctx_train) if wishes.n_ctx == "auto" else wishes.n_ctx
        )
        settled = replace(
            wishes,
            slots=slots,
            n_ctx=n_ctx,
            kv_cells=slots * n_ctx if wishes.kv_cells == "auto" else wishes.kv_cells,
            kv_type="f16" if wishes.kv_type == "auto" else wishes.kv_type,
            n_gpu_layers=min(int(layers), self.all_layers),
            n_cpu_moe=0 if wishes.n_cpu_moe == "auto" else wishes.n_cpu_moe,
            draft_rows=0 if self._drafts_nothing(wishes) else wishes.draft_rows,
        )
        return with_attention(self.shape, settled)

    def _drafts_nothing(self, wishes: Wishes) -> bool:
        """Whether a draft could not be forgotten (recurrent memories), or graphs have one row."""
        return wishes.n_ubatch == 1 or any(layer.recurrent for layer in self.shape.layers)

    def plan(self, wishes: Wishes) -> Plan:
        """Work out one configuration. Raises `ConfigError` for wishes that contradict each other."""
        layout = self._layout(wishes)
        found = self._assemble(layout)
        return found if found.fits else self._with_flash(wishes, layout) or found

    def fitting(self, wishes: Wishes) -> Plan | None:
        """Do as `plan` does; None for what does not fit, which weights and KV cache alone often tell."""
        layout = self._layout(wishes)
        found = self._assemble(layout) if self._may_fit(layout) else None
        return found if found is not None and found.fits else self._with_flash(wishes, layout)

    def _may_fit(self, layout: _Layout) -> bool:
        weights, cache, memory = self._weights_of(layout.where), layout.cache, self.memory
        kept = weights.cpu - (0 if layout.wishes.mlock else weights.evictable) + cache.cpu
        if weights.gpu + cache.gpu > memory.gpu_limit:
            return False
        return memory.cpu_available is None or kept <= memory.cpu_available

    def _with_flash(self, wishes: Wishes, layout: _Layout) -> Plan | None:
        """Plan what does not fit with flash attention, which stores no scores; None if it was on, or is not to be."""
        if layout.run.flash or wishes.flash_attention != "auto":
            return None
        return self.fitting(replace(wishes, flash_attention="on"))

    def _layout(self, asked: Wishes) -> _Layout:
        wishes = self.resolve(asked)
        slots, n_ctx, kv_cells = int(wishes.slots), int(wishes.n_ctx), int(wishes.kv_cells)
        unified, flash = wishes.kv_layout == "unified", wishes.flash_attention == "on"
        check_wishes(wishes, n_ctx, kv_cells, unified=unified, flash=flash)
        where = Placement(
            int(wishes.n_gpu_layers),
            int(wishes.n_cpu_moe),
            self.memory.repacked,
            # Without a layer on it, the card is not used at all (`server.llama.model`).
            self.memory.has_gpu and int(wishes.n_gpu_layers) > 0,
            wishes.mmap,
        )
        cells = allocated_cells(n_ctx, slots, kv_cells, unified=unified)
        split = first_gpu_layer(self.shape, where.n_gpu_layers)
        split = split if where.has_gpu else self.all_layers
        cache = kv_bytes(self.shape, wishes.kv_type, split, cells, slots=slots, flash=flash)
        run = _largest_run(wishes, slots, cells, unified=unified, flash=flash)
        return _Layout(wishes, asked, cache, where, run, unified)

    def _assemble(self, layout: _Layout) -> Plan:
        shape, memory = self.shape, self.memory
        wishes, cache, where, run = layout.wishes, layout.cache, layout.where, layout.run
        weights = self._weights_of(where)
        compute = self._compute_of(where, run, int(wishes.slots))
        output = (int(wishes.slots) + wishes.draft_rows) * shape.n_vocab * 4
        overhead = memory.cuda_context + self._pool(run) if memory.has_gpu else 0
        process = _PROCESS + shape.n_vocab * _BYTES_PER_TOKEN_TEXT + self._pool(run)
        compute_gpu = compute.gpu + compute.gpu // _COMPUTE_MARGIN
        total_gpu = weights.gpu + cache.gpu + compute_gpu + overhead
        total_cpu = weights.cpu + cache.cpu + compute.cpu + output + process
        reclaimable = 0 if wishes.mlock else weights.evictable
        made = Plan(
            weights_gpu=weights.gpu,
            weights_cpu=weights.cpu,
            kv_per_token=cache.per_token,
            kv_gpu=cache.gpu,
            kv_cpu=cache.cpu,
            compute_gpu=compute_gpu,
            compute_cpu=compute.cpu,
            output_cpu=output,
            overhead=overhead,
            overhead_cpu=process,
            total_gpu=total_gpu,
            total_cpu=total_cpu,
            reclaimable_cpu=reclaimable,
            limit_gpu=memory.gpu_limit,
            limit_cpu=memory.cpu_available,
            fits=fits(total_gpu, total_cpu - reclaimable, memory),
            n_gpu_layers=where.n_gpu_layers,
            n_cpu_moe=where.n_cpu_moe,
            n_layers=self.all_layers,
            slots=int(wishes.slots),
            n_ctx=int(wishes.n_ctx),
            kv_cells=int(wishes.kv_cells),
            kv_type=wishes.kv_type,
            kv_layout="unified" if layout.unified else "split",
            n_ubatch=wishes.n_ubatch,
            draft_rows=wishes.draft_rows,
            flash_attention=run.flash,
            estimated=not is_replayed(shape),
        )
        return self._drafting.added(made, layout.asked)

    def _weights_of(self, where: Placement) -> WeightBytes:
        if where not in self._weights:
            self._weights[where] = weight_bytes(self.shape, where)
        return self._weights[where]

    def _compute_of(self, where: Placement, run: Run, slots: int) -> ComputeBytes:
        key = (where, run, slots)
        if key not in self._compute:
            found = compute_bytes(self.shape, where, run)
            if run.tokens < _MANY_ROWS * slots:
                # One row of every slot is reserved for too; its tensors may lie worse in the buffer.
                single = compute_bytes(self.shape, where, replace(run, tokens=slots, outputs=slots))
                found = ComputeBytes(max(found.gpu, single.gpu), max(found.cpu, single.cpu))
            self._compute[key] = found
        return self._compute[key]

    def _pool(self, run: Run) -> int:
        """Scratch outside the compute buffer: rows converted for the matrix kernels, widest matrix first."""
        widest = max(
            (weight.dimensions[0] for weight in self.shape.weights if len(weight.dimensions) > 1),
            default=0,
        )
        used = max((layer.n_expert_used for layer in self.shape.layers), default=0)
        return padded(6 * widest * run.tokens * max(used // 2, 1), MIB)


def _largest_run(
    wishes: Wishes, slots: int, cells: tuple[int, int], *, unified: bool, flash: bool
) -> Run:
    """Describe the graph for which llama.cpp reserves: a full ubatch over all cells, with the most outputs."""
    # llama.cpp cuts the batch to the cells asked for, before it rounds them up.
    asked = int(wishes.kv_cells) if unified else cells[0]
    rows = min(wishes.n_ubatch, wishes.n_batch, asked)
    return Run(
        tokens=-(-rows // slots) * slots,
        outputs=min(rows, slots + wishes.draft_rows),
        n_kv=cells[1],
        streams=1 if unified else slots,
        flash=flash,
        kv_type=wishes.kv_type,
    )


def plan(shape: ModelShape, wishes: Wishes, memory: Memory) -> Plan:
    """Plan one configuration; what `wishes` leaves to `auto` takes its plain default.

    `choose` searches instead. Raises `ConfigError` for wishes that contradict each other.
    """
    return Planner(shape, memory).plan(wishes)
