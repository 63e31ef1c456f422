"""ggml's graph allocator, replayed on sizes: what a compute graph's buffers come to.

A port of `ggml_gallocr_alloc_graph_impl` (ggml-alloc.c of the pinned llama.cpp). Replaying it is
exact where formulas are not: a tensor may take over its parent's place, and freed places are
filled best fit first, so the peak depends on the order of all operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.catalog.plan.graph import Node, Tensor

_IN_PLACE = frozenset(
    {"add", "add_id", "mul", "div", "scale", "unary", "rope", "rms_norm", "clamp", "soft_max"}
)
"""`ggml_op_can_inplace`, as far as graphs here use it."""
_ENDLESS = 1 << 62


def padded(size: int, alignment: int) -> int:
    """Round `size` up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


@dataclass(slots=True)
class _Heap:
    """`ggml_dyn_tallocr` with one chunk: free blocks as [offset, size], sorted by offset."""

    alignment: int
    peak: int = 0
    blocks: list[list[int]] = field(default_factory=lambda: [[0, _ENDLESS]])

    def take(self, size: int) -> int:
        size = padded(size, self.alignment)
        # The last block is the open end; it is taken only when no hole is large enough. Of equal
        # holes the later one wins.
        best = len(self.blocks) - 1
        for index in range(len(self.blocks) - 1):
            room = self.blocks[index][1]
            if room >= size and (best == len(self.blocks) - 1 or room <= self.blocks[best][1]):
                best = index
        block = self.blocks[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self.blocks[best]
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        size = padded(size, self.alignment)
        blocks = self.blocks
        for index, block in enumerate(blocks):
            if block[0] + block[1] == offset:
                block[1] += size
                if index + 1 < len(blocks) and block[0] + block[1] == blocks[index + 1][0]:
                    block[1] += blocks[index + 1][1]
                    del blocks[index + 1]
                return
            if offset + size == block[0]:
                block[0] = offset
                block[1] += size
                if index and blocks[index - 1][0] + blocks[index - 1][1] == block[0]:
                    blocks[index - 1][1] += block[1]
                    del blocks[index]
                return
        place = next((i for i, block in enumerate(blocks) if block[0] > offset), len(blocks))
        blocks.insert(place, [offset, size])


@dataclass(slots=True)
class _State:
    """`hash_node`."""

    children: int = 0
    views: int = 0
    heap: int = 0
    offset: int = 0
    allocated: bool = False


class _Allocator:
    def __init__(self, alignments: Sequence[int]) -> None:
        self.heaps = [_Heap(alignment) for alignment in alignments]
        self.states: dict[int, _State] = {}

    def state(self, tensor: Tensor) -> _State:
        found = self.states.get(id(tensor))
        if found is None:
            found = self.states[id(tensor)] = _State()
        return found

    def place(self, tensor: Tensor, heap: int) -> None:
        state = self.state(tensor)
        if tensor.external or tensor.view_src is not None or state.allocated:
            return
        state.allocated = True
        if tensor.op in _IN_PLACE and self._take_over(tensor, state):
            return
        state.heap = heap
        state.offset = self.heaps[heap].take(tensor.size_on(heap))

    def _take_over(self, tensor: Tensor, state: _State) -> bool:
        """Reuse the place of a parent that nobody else needs."""
        for parent in tensor.srcs:
            owner = self.state(parent)
            # ggml counts a view as somebody else's memory here, so a view is never taken over.
            if not owner.allocated or parent.layout != tensor.layout:
                continue
            if owner.children != 1 or owner.views != 0:
                continue
            state.heap, state.offset = owner.heap, owner.offset
            owner.allocated = False
            heap = self.heaps[owner.heap]
            whole = padded(parent.size_on(owner.heap), heap.alignment)
            needed = padded(tensor.size_on(owner.heap), heap.alignment)
            if whole > needed:
                heap.give(owner.offset + needed, whole - needed)
            return True
        return False

    def release(self, tensor: Tensor) -> None:
        state = self.state(tensor)
        self.heaps[state.heap].give(state.offset, tensor.size_on(state.heap))
        state.allocated = False


def peak_sizes(
    nodes: Sequence[Node], leafs: Sequence[tuple[Tensor, int]], alignments: Sequence[int]
) -> list[int]:
    """Bytes of each compute buffer.

    `nodes` in order of execution, each with the buffer it lives in; `leafs` likewise;
    `alignments`: one per buffer.
    """
    allocator = _Allocator(alignments)
    for leaf, heap in leafs:
        allocator.place(leaf, heap)
    for node in nodes:
        tensor = node.tensor
        if tensor.view_src is not None and tensor.op != "none":
            allocator.state(tensor.view_src).views += 1
        for source in tensor.srcs:
            allocator.state(source).children += 1
    for node in nodes:
        tensor = node.tensor
        for parent in tensor.srcs:
            allocator.place(parent, node.buffer)
        allocator.place(tensor, node.buffer)
        for parent in tensor.srcs:
            _let_go(allocator, parent)
    return [heap.peak for heap in allocator.heaps]


def _let_go(allocator: _Allocator, parent: Tensor) -> None:
    state = allocator.state(parent)
    state.children -= 1
    if state.children or state.views:
        return
    if parent.view_src is None:
        if state.allocated:
            allocator.release(parent)
        return
    owner = allocator.state(parent.view_src)
    owner.views -= 1
    if not owner.views and not owner.children and owner.allocated:
        allocator.release(parent.view_src)
