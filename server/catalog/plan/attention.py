"""What `auto` means for the KV layout and flash attention, known before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from server.catalog.plan.kv import KV_BLOCKS
from server.catalog.plan.shape import ModelShape
from server.catalog.plan.wishes import Wishes


def with_attention(shape: ModelShape, wishes: Wishes) -> Wishes:
    """Replace `auto` in `kv_layout` and `flash_attention` of wishes that leave nothing else open.

    With layers on a GPU: unified, and on. On a CPU alone: split, and off. ggml computes flash attention there one
    row at a time in calls of less than 64 rows, and in a unified cache every row passes the cells of all sequences.

    What is left unified is what the split layout would take more from than it gives: a pool that is not slots × n_ctx,
    windows (their states lack cells, so slots could not copy prefixes), recurrent and compressed memories, layers of
    several widths (without flash attention each takes the cells of the widest). Flash attention stays on for these, for
    a quantized V cache, which needs it, and row by row, whose bits are promised.
    """
    row_by_row = wishes.n_ubatch == 1
    plain = wishes.n_gpu_layers == 0 and _is_plain(shape)
    layout: Literal["auto", "unified", "split"] = wishes.kv_layout
    if layout == "auto":
        whole = wishes.kv_cells == int(wishes.slots) * int(wishes.n_ctx)
        layout = "split" if row_by_row or (plain and whole) else "unified"
    flash: Literal["auto", "on", "off"] = wishes.flash_attention
    if flash == "auto":
        unquantized = KV_BLOCKS[wishes.kv_type][0] == 1
        off = plain and layout == "split" and unquantized and not row_by_row
        flash = "off" if off else "on"
    return replace(wishes, kv_layout=layout, flash_attention=flash)


def _is_plain(shape: ModelShape) -> bool:
    if shape.windowed or shape.mla or any(layer.recurrent for layer in shape.layers):
        return False
    return len({layer.n_embd_v for layer in shape.layers if layer.has_kv}) == 1
