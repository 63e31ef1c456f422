"""What every part of a decoder's graph is made of: norms, matrices, and where their weights lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.catalog.plan.graph import Graph, Tensor
from server.catalog.plan.shape import Layer, ModelShape, Weight

_CENTRED = frozenset(
    {
        "gpt2",
        "gptneox",
        "falcon",
        "bloom",
        "mpt",
        "phi2",
        "starcoder",
        "starcoder2",
        "stablelm",
        "command-r",
    }
)
"""Architectures that take LayerNorm, which ggml never computes in place."""


@dataclass(frozen=True, slots=True)
class Run:
    """One compute graph: its rows and what it attends to."""

    tokens: int
    outputs: int
    n_kv: int
    """Cells of one stream that the mask spans."""
    streams: int
    flash: bool
    kv_type: str


class Blocks:
    """One graph under construction. `home` says where a weight lies, `cache_home` where a layer's cache does."""

    def __init__(
        self,
        shape: ModelShape,
        run: Run,
        home: Callable[[Weight], int],
        cache_home: Callable[[int], int],
    ) -> None:
        self.shape = shape
        self.run = run
        self.home = home
        self.cache_home = cache_home
        self.graph = Graph()
        self.quantized = run.kv_type not in ("f32", "f16", "bf16")
        self.widest = max((layer.n_embd_v for layer in shape.layers), default=0)
        self.norm_op = "norm" if shape.architecture in _CENTRED else "rms_norm"

    def _norm(self, layer: Layer, tensor: Tensor, name: str, *, required: bool = True) -> Tensor:
        weight = layer.tensors.get(f"{name}.weight")
        if weight is None or (
            name == "post_attention_norm" and self.shape.architecture == "gpt-oss" and not required
        ):
            if not required:
                return tensor
            return self.graph.like(self.norm_op, tensor)
        normed = self.graph.like(self.norm_op, tensor)
        normed = self.graph.like("mul", normed, self._external(weight))
        if bias := layer.tensors.get(f"{name}.bias"):
            normed = self.graph.like("add", normed, self._external(bias))
        return normed

    def _external(self, weight: Weight) -> Tensor:
        return self.graph.weight(self.home(weight), weight.n_bytes)

    def _matmul(self, layer: Layer, name: str, tensor: Tensor) -> Tensor:
        weight = layer.tensors[f"{name}.weight"]
        made = self.graph.new(
            "mul_mat", "f32", (weight.dimensions[1], *tensor.ne[1:]), self._external(weight), tensor
        )
        if bias := layer.tensors.get(f"{name}.bias"):
            made = self.graph.like("add", made, self._external(bias))
        return made
