"""A slot's cells as bytes in host memory, in llama.cpp's own form.

That form names no model: a state belongs to the context that it came from. What it holds of a model with sliding-window
attention is not all cells; in the unified layout without flash attention cells that do not follow each other, as most,
take as long to copy as to compute. Neither is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.catalog.plan import Allocated
from server.llama.arena import Arena
from server.llama.native import Address, Library

_MOST_TOUCHED = 2**31
"""Bytes of host memory that a load waits for; a slow machine needs four seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class SavedCells:
    """Cells at positions 0 … cells-1 of one sequence."""

    buffer: npt.NDArray[np.uint8]
    cells: int

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        return self.buffer.nbytes


def touch(arena: Arena, allocated: Allocated) -> None:
    """Use as much as the KV cache has once, so that the first saves need not wait for pages."""
    arena.touch(min(allocated.kv_cpu + allocated.kv_gpu, _MOST_TOUCHED, arena.limit))


def state_bytes(library: Library, context: Address, slot: int) -> int:
    """Bytes that `save` would take."""
    return library.state_seq_get_size(context, slot)


def save(
    library: Library, context: Address, slot: int, cells: int, arena: Arena | None = None
) -> SavedCells:
    """Copy all `cells` cells of `slot`, once, into memory of `arena`, or what the system gives when that has no room.

    Raises `RuntimeError`, `MemoryError`.
    """
    nbytes = state_bytes(library, context, slot)
    buffer = None if arena is None else arena.take(nbytes)
    if buffer is None:
        buffer = np.empty(nbytes, np.uint8)
    if (
        library.state_seq_get_data(context, buffer.ctypes.data, buffer.nbytes, slot)
        != buffer.nbytes
    ):
        message = f"llama.cpp did not save slot {slot}: {library.log.reason()}"
        raise RuntimeError(message)
    return SavedCells(buffer, cells)


def restore(library: Library, context: Address, slot: int, state: SavedCells) -> int:
    """Put `state` into `slot` in place of what it holds; return its cells then: all of `state`'s, or 0."""
    read = library.state_seq_set_data(context, state.buffer.ctypes.data, state.nbytes, slot)
    memory = library.get_memory(context)
    if read == state.nbytes and library.memory_seq_pos_max(memory, slot) + 1 == state.cells:
        return state.cells
    library.memory_seq_rm(memory, slot, -1, -1)
    return 0
