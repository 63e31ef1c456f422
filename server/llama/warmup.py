"""The first decodes, made as large as any later one: what survives them survives service.

llama.cpp sizes its compute buffers at creation, for a full ubatch over all cells. What grows later
is outside of them: CUDA's pools (rows converted for the matrix kernels, partial sums of attention),
kernels and libraries that load at first use. Those depend on the rows of a call and on `n_kv`, the
highest cell in use. So the cells are occupied up to the last rows, by copies of one computed piece
instead of by computing them, and then the largest prefill and the widest decode step run up there.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from server.core.errors import ConfigError
from server.engine.plan import Rows
from server.llama.batch import BatchBuffer
from server.llama.native import Address, Library

_CHEAP_ROWS = 8
_HOLDER = 255
"""A sequence id that no slot has (`LLAMA_MAX_SEQ` - 1): it can own cells, but never decodes."""
_MOST_COMPUTED = 8192
"""Rows that the split layout computes to get deep: its streams cannot be filled by copies."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """One context and what its decode calls may be at most."""

    library: Library
    context: Address
    batch: BatchBuffer
    slots: int
    outputs: int
    """Most rows of a call that give logits; the buffer for these grows with the first call that has them."""
    unified: bool
    token: int
    """A token to compute with."""

    def run(self, *, deep: bool) -> int:
        """Decode and forget it; return the depth reached, in cells.

        `deep` is for a GPU; on a CPU, whose memory all lies in planned buffers, a few rows touch the pages.
        Raises `ConfigError` when a call fails.
        """
        memory = self.library.get_memory(self.context)
        rows = min(self.library.n_ubatch(self.context), self.batch.n_rows) if deep else _CHEAP_ROWS
        rows = max(min(rows, self.batch.n_rows), 1)
        self._decode([Rows(0, 0, [self.token] * rows, outputs=min(rows, self.outputs))])
        depth = rows
        if deep:
            depth = self._fill(memory, rows) if self.unified else self._compute(rows)
        self.library.synchronize(self.context)
        clear_data = True
        self.library.memory_clear(memory, clear_data)
        return depth

    def _fill(self, memory: Address, rows: int) -> int:
        """Occupy all cells but the last `rows + slots` by copies, then decode into those."""
        library, context = self.library, self.context
        size = library.state_seq_get_size(context, 0)
        state = ctypes.create_string_buffer(size)
        room = library.n_ctx(context) - rows - self.slots
        copied = library.state_seq_get_data(context, state, size, 0) == size
        held = 0
        while copied and held + rows <= room:
            library.memory_seq_cp(memory, 0, _HOLDER, 0, -1)
            held += rows
            copied = library.state_seq_set_data(context, state, size, 0) == size
        library.memory_seq_rm(memory, 0, -1, -1)
        self._decode([Rows(0, 0, [self.token] * rows, outputs=1)])
        library.memory_seq_rm(memory, 0, rows - 1, -1)
        self._decode(
            [
                Rows(slot, rows - 1 if slot == 0 else 0, [self.token], outputs=1)
                for slot in range(min(self.slots, self.batch.n_rows))
            ]
        )
        return held + rows

    def _compute(self, rows: int) -> int:
        """Compute one stream as deep as is reasonable, then one row of every slot."""
        depth = rows
        most = min(self.library.n_ctx_seq(self.context), _MOST_COMPUTED)
        while depth + rows < most:
            self._decode([Rows(0, depth, [self.token] * rows, outputs=1)])
            depth += rows
        self._decode(
            [
                Rows(slot, depth if slot == 0 else 0, [self.token], outputs=1)
                for slot in range(min(self.slots, self.batch.n_rows))
                if slot or depth < self.library.n_ctx_seq(self.context)
            ]
        )
        return depth

    def _decode(self, planned: list[Rows]) -> None:
        self.batch.fill(planned)
        code = self.library.decode(self.context, self.batch.native)
        if code:
            raise ConfigError(
                f"The first decode call failed with code {code}. If memory ran out, lower slots, "
                "n_ctx, kv_cells or n_gpu_layers, or choose kv_type q8_0."
            )
