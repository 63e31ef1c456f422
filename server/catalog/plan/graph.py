"""Compute graphs as sizes: tensors without data, built in the order in which llama.cpp builds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

SIZES = {"f32": 4, "f16": 2, "i32": 4, "i64": 8}
GPU, CPU = 0, 1
"""Buffers, in llama.cpp's order of priority."""

Layout = tuple[str, tuple[int, ...], tuple[int, ...]]


class Tensor:
    """A result, an input, a view, or something allocated elsewhere (weights, KV cache)."""

    __slots__ = (
        "external",
        "gpu_scratch",
        "is_input",
        "layout",
        "n_bytes",
        "offset",
        "op",
        "side",
        "srcs",
        "view_src",
    )

    def __init__(self, op: str, layout: Layout, n_bytes: int, srcs: Sequence[Tensor] = ()) -> None:
        self.op = op
        self.layout = layout
        self.n_bytes = n_bytes
        self.srcs = tuple(srcs)
        self.view_src: Tensor | None = None
        self.offset = 0
        self.is_input = False
        self.external = ""
        """`weight` or `kv` when it is allocated elsewhere."""
        self.side = CPU
        """Where an external tensor lies."""
        self.gpu_scratch = 0
        """Bytes more that CUDA wants behind it."""

    @property
    def ne(self) -> tuple[int, ...]:
        """Elements per dimension, four of them."""
        return self.layout[1]

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie without gaps and in order."""
        kind, ne, nb = self.layout
        return nb == strides(kind, ne)

    def size_on(self, buffer: int) -> int:
        """Bytes in a compute buffer."""
        return self.n_bytes + (self.gpu_scratch if buffer == GPU else 0)


@dataclass(frozen=True, slots=True)
class Node:
    """One step of the allocation: a tensor and the buffer it belongs to."""

    tensor: Tensor
    buffer: int


def strides(kind: str, ne: Sequence[int]) -> tuple[int, ...]:
    """Bytes from one element to the next, per dimension, of a contiguous tensor."""
    steps = [SIZES[kind]]
    for count in ne[:-1]:
        steps.append(steps[-1] * count)
    return tuple(steps)


def _four(ne: Sequence[int]) -> tuple[int, ...]:
    return (*ne, *(1,) * (4 - len(ne)))


class Graph:
    """Collects nodes in the order in which `ggml_build_forward_expand` would."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []
        self._seen: set[int] = set()

    def expand(self, tensor: Tensor) -> None:
        """Add `tensor` after all that it needs, sources from left to right."""
        if id(tensor) in self._seen:
            return
        self._seen.add(id(tensor))
        for source in tensor.srcs:
            self.expand(source)
        (self.leafs if tensor.op == "none" else self.nodes).append(tensor)

    def new(self, op: str, kind: str, ne: Sequence[int], *srcs: Tensor) -> Tensor:
        """Make a contiguous result of `op`."""
        shape = _four(ne)
        return Tensor(op, (kind, shape, strides(kind, shape)), prod(shape) * SIZES[kind], srcs)

    def like(self, op: str, first: Tensor, *others: Tensor) -> Tensor:
        """Make a result of the first source's shape (contiguous, as ggml's `dup` makes it)."""
        return self.new(op, first.layout[0], first.ne, first, *others)

    def input(self, kind: str, *ne: int) -> Tensor:
        """Make an input."""
        made = self.new("none", kind, ne)
        made.is_input = True
        return made

    def weight(self, side: int, n_bytes: int = 0) -> Tensor:
        """Make a weight on one side, with its size where it may be copied to the other."""
        made = Tensor("none", ("f32", (1, 1, 1, 1), (4, 4, 4, 4)), n_bytes)
        made.external, made.side = "weight", side
        return made

    def cache(self, side: int) -> Tensor:
        """Make a layer's K or V cache."""
        made = self.weight(side)
        made.external = "kv"
        return made

    def view(
        self, tensor: Tensor, ne: Sequence[int], *, op: str = "view", offset: int = 0
    ) -> Tensor:
        """Look at `tensor` in another shape; offset in bytes. Strides are those of whole rows."""
        shape = _four(ne)
        kind = tensor.layout[0]
        made = Tensor(op, (kind, shape, strides(kind, shape)), prod(shape) * SIZES[kind], (tensor,))
        root = tensor.view_src or tensor
        made.view_src = root
        made.offset = tensor.offset + offset
        made.external, made.side = root.external, root.side
        return made

    def strided(
        self, tensor: Tensor, ne: Sequence[int], nb: Sequence[int], *, offset: int = 0
    ) -> Tensor:
        """Look at `tensor` with strides of its own, in bytes."""
        made = self.view(tensor, ne, offset=offset)
        made.layout = (tensor.layout[0], _four(ne), tuple(nb))
        return made
