"""Bytes of the KV cache, as llama.cpp lays it out (llama-kv-cache.cpp)."""

from __future__ import annotations

from dataclasses import dataclass

from server.catalog.plan.allocator import padded
from server.catalog.plan.shape import Layer, ModelShape

KV_BLOCKS: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
}
"""KV type → elements per block, bytes per block."""

_CELLS = 256
"""Contexts are rounded up to a multiple of this."""
_ALIGNMENT = {True: 128, False: 32}
"""Of tensors in CUDA's and in the CPU's buffers."""


@dataclass(frozen=True, slots=True)
class KvBytes:
    """Bytes on each side, and of one token in all layers."""

    gpu: int
    cpu: int
    per_token: int
    cells: int
    """Cells that are really allocated, over all slots."""
    stream_cells: int
    """Cells of one stream: all in the unified layout, one slot's in the split one."""


def row_bytes(kv_type: str, elements: int) -> int:
    """Bytes of `elements` values; quantized rows hold whole blocks."""
    block, size = KV_BLOCKS[kv_type]
    return -(-elements // block) * size


def allocated_cells(n_ctx: int, slots: int, kv_cells: int, *, unified: bool) -> tuple[int, int]:
    """Cells in all and of one stream, rounded as llama.cpp rounds them."""
    if unified:
        whole = padded(kv_cells, _CELLS)
        return whole, whole
    stream = padded(n_ctx, _CELLS)
    return stream * slots, stream


def kv_bytes(
    shape: ModelShape,
    kv_type: str,
    gpu_from: int,
    cells: tuple[int, int],
    *,
    slots: int,
    flash: bool,
) -> KvBytes:
    """Size the cache; layers from `gpu_from` on keep theirs on the GPU."""
    whole, stream = cells
    # Without flash attention V is stored transposed, in rows as wide as the widest layer's.
    widest = max((layer.n_embd_v for layer in shape.layers), default=0)
    sides = [0, 0]
    per_token = 0
    for index, layer in enumerate(shape.layers):
        on_gpu = index >= gpu_from
        alignment = _ALIGNMENT[on_gpu]
        if layer.has_kv:
            for elements in _widths(shape, layer, layer.n_embd_v if flash else widest):
                row = row_bytes(kv_type, elements)
                per_token += row
                sides[on_gpu] += padded(row * whole, alignment)
        if layer.recurrent:
            sides[on_gpu] += padded(shape.state_elements * 4 * slots, alignment)
    return KvBytes(sides[True], sides[False], per_token, whole, stream)


def _widths(shape: ModelShape, layer: Layer, value_width: int) -> tuple[int, ...]:
    return (layer.n_embd_k,) if shape.mla else (layer.n_embd_k, value_width)
