"""The plan of a draft model beside the plan of the model that it drafts for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from server.catalog.plan.kv import KV_BLOCKS
from server.catalog.plan.memory import Memory
from server.catalog.plan.plans import Plan, fits
from server.catalog.plan.shape import ModelShape
from server.catalog.plan.wishes import DraftWish, Wishes

PlanAlone = Callable[[ModelShape, Wishes, Memory], Plan]
"""Plans a model as if it were alone."""


class Drafting:
    """Adds a draft model to plans of one machine, and remembers what it takes."""

    def __init__(self, memory: Memory, plan_alone: PlanAlone) -> None:
        self._memory = memory
        self._without_card = replace(memory, gpu_total=None, gpu_free=None)
        self._plan_alone = plan_alone
        self._known: dict[tuple[str, Wishes, bool], Plan] = {}

    def added(self, main: Plan, wishes: Wishes) -> Plan:
        """Return `main` with what `wishes.draft` takes for as many slots and tokens; without one, as it is."""
        if wishes.draft is None:
            return main
        on_gpu = wishes.draft.on_gpu and self._memory.has_gpu and main.n_gpu_layers > 0
        draft = self._draft(
            wishes.draft, _own_wishes(wishes, wishes.draft.shape, main), on_gpu=on_gpu
        )
        total_gpu = main.total_gpu + draft.total_gpu
        total_gpu -= self._memory.cuda_context if on_gpu else 0  # CUDA is there once
        total_cpu = main.total_cpu + draft.total_cpu
        reclaimable = main.reclaimable_cpu + draft.reclaimable_cpu
        return replace(
            main,
            draft=draft,
            total_gpu=total_gpu,
            total_cpu=total_cpu,
            reclaimable_cpu=reclaimable,
            fits=fits(total_gpu, total_cpu - reclaimable, self._memory),
        )

    def _draft(self, draft: DraftWish, wishes: Wishes, *, on_gpu: bool) -> Plan:
        key = (draft.shape.path, wishes, on_gpu)
        if key not in self._known:
            memory = self._memory if on_gpu else self._without_card
            self._known[key] = self._plan_alone(draft.shape, wishes, memory)
        return self._known[key]


def _own_wishes(wishes: Wishes, shape: ModelShape, main: Plan) -> Wishes:
    """Return what the draft model's context is to be: the sizes of `main`, all layers in one place.

    A call has a ubatch at most, as `server.llama.params.LlamaParams.drafting` has it. Its KV cache is f16, or q8_0
    where the model's own is quantized: a draft may be wrong.
    """
    rows = min(wishes.n_ubatch, wishes.n_batch)
    if main.kv_layout == "unified":
        rows = min(rows, main.kv_cells)
    quantized = KV_BLOCKS[main.kv_type][0] > 1 and _in_blocks(shape, "q8_0")
    return replace(
        wishes,
        slots=main.slots,
        n_ctx=main.n_ctx,
        kv_cells="auto",
        kv_type="q8_0" if quantized else "f16",
        n_gpu_layers="all",
        n_cpu_moe=0,
        n_ubatch=rows,
        n_batch=max(rows, main.slots),
        draft_rows=0,
        draft=None,
    )


def _in_blocks(shape: ModelShape, kv_type: str) -> bool:
    """Whether each head's row is whole blocks, as llama.cpp demands of quantized caches."""
    block = KV_BLOCKS[kv_type][0]
    return all(layer.head_k % block == layer.head_v % block == 0 for layer in shape.layers)
