"""Compute buffers of both sides: the graph, split between GPU and CPU as ggml's scheduler splits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.catalog.plan.allocator import peak_sizes
from server.catalog.plan.blocks import Run
from server.catalog.plan.graph import CPU, GPU, Graph, Node, Tensor
from server.catalog.plan.shape import Layer, ModelShape, Weight
from server.catalog.plan.transformer import Builder
from server.catalog.plan.weights import Placement, first_gpu_layer, on_gpu

_ALIGNMENTS = (128, 32)
_VIEWS = frozenset({"view", "reshape", "permute"})
_OFFLOAD_ROWS = 32
"""From so many rows on, CUDA takes over operations on weights in system memory (`op_offload`)."""
_UNSURE = 4
"""One part in so many is added for architectures that were not held against llama.cpp."""
_REPLAYED = frozenset(
    {"llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3", "openelm"}
)
"""Architectures whose buffers the tests compare with llama.cpp's."""
_ALIKE = 4
"""Equal neighbouring layers that are replayed; more do not change the peak."""


@dataclass(frozen=True, slots=True)
class ComputeBytes:
    """Bytes of the two compute buffers."""

    gpu: int
    cpu: int


def compute_bytes(shape: ModelShape, where: Placement, run: Run) -> ComputeBytes:
    """Replay the largest graph that llama.cpp reserves for.

    A layer whose parts the graph does not know (compressed attention, recurrent states) is
    estimated instead, generously.
    """
    if not all(_is_known(layer) for layer in shape.layers):
        return _estimate(shape, where, run)
    split = first_gpu_layer(shape, where.n_gpu_layers) if where.has_gpu else shape.n_layer + 1

    def home(weight: Weight) -> int:
        return GPU if on_gpu(shape, weight, where) else CPU

    def layer_home(index: int) -> int:
        return GPU if index >= split else CPU

    graph = Builder(shape, run, home, layer_home).build(_kept_layers(shape, where, layer_home))
    if where.has_gpu:
        gpu, cpu = _Scheduler(graph).sizes()
    else:
        nodes = [Node(tensor, CPU) for tensor in graph.nodes]
        gpu, cpu = peak_sizes(nodes, [(leaf, CPU) for leaf in graph.leafs], _ALIGNMENTS)
    if shape.architecture in _REPLAYED:
        return ComputeBytes(gpu, cpu)
    return ComputeBytes(gpu + gpu // _UNSURE, cpu + cpu // _UNSURE)


def is_replayed(shape: ModelShape) -> bool:
    """Whether the buffers are llama.cpp's own to the byte, and not an estimate with a margin."""
    return shape.architecture in _REPLAYED and all(_is_known(layer) for layer in shape.layers)


def _is_known(layer: Layer) -> bool:
    """Whether the builder knows the layer's parts."""
    fused = layer.rows("attn_qkv") > 0
    attends = fused or (layer.rows("attn_q") > 0 and layer.rows("attn_k") > 0)
    feeds = layer.rows("ffn_up") > 0 or any(weight.is_experts for weight in layer.tensors.values())
    routed = not any(weight.is_experts for weight in layer.tensors.values()) or (
        layer.rows("ffn_gate_inp") > 0 and "ffn_down_exps.weight" in layer.tensors
    )
    return attends and feeds and routed and not layer.recurrent and layer.n_head > 0


def _estimate(shape: ModelShape, where: Placement, run: Run) -> ComputeBytes:
    """Add up what could be alive at once: masks, a handful of the widest rows, scores, logits, borrowed weights."""
    widest = max(
        (w.dimensions[1] for w in shape.weights if w.layer is not None and len(w.dimensions) > 1),
        default=shape.n_embd,
    )
    used = max((layer.n_expert_used for layer in shape.layers), default=0)
    heads = max((layer.n_head for layer in shape.layers), default=0)
    masks = 2 * run.n_kv * run.tokens * (2 if run.flash else 4)
    scores = 0 if run.flash else 2 * run.n_kv * run.tokens * heads * 4
    rows = run.tokens * 4 * (8 * shape.n_embd + 6 * widest * max(used, 1))
    state = 4 * shape.state_elements * 4 * max(run.streams, 1)
    everything = masks + scores + rows + state + run.outputs * shape.n_vocab * 4
    borrowed = max((w.n_bytes for w in shape.weights), default=0)
    return ComputeBytes(everything + borrowed if where.has_gpu else 0, everything)


def _kept_layers(shape: ModelShape, where: Placement, layer_home: object) -> list[int]:
    """Leave out layers that are like their neighbours on both sides."""
    kinds = [_kind(layer, index, where) for index, layer in enumerate(shape.layers)]
    homes = [layer_home(index) for index in range(shape.n_layer)]  # type: ignore[operator]
    period = 2 if any(layer.swa for layer in shape.layers) else 1
    kept = []
    for index in range(shape.n_layer):
        before = range(max(index - _ALIKE * period, 0), index)
        alike = sum(kinds[i] == kinds[index] and homes[i] == homes[index] for i in before)
        if alike < _ALIKE or index == shape.n_layer - 1:
            kept.append(index)
    return kept


def _kind(layer: Layer, index: int, where: Placement) -> tuple[object, ...]:
    tensors = tuple((name, weight.dimensions) for name, weight in sorted(layer.tensors.items()))
    return (
        layer.n_head,
        layer.n_head_kv,
        layer.head_k,
        layer.head_v,
        layer.swa,
        index < where.n_cpu_moe,
        tensors,
    )


class _Scheduler:
    """`ggml_backend_sched_split_graph` for one GPU and the CPU."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.homes: dict[int, int] = {}

    def sizes(self) -> tuple[int, int]:
        self._assign()
        nodes = self._with_copies()
        leafs = [(leaf, self.homes.get(id(leaf), CPU)) for leaf in self.graph.leafs]
        gpu, cpu = peak_sizes(nodes, leafs, _ALIGNMENTS)
        return gpu, cpu

    def _assign(self) -> None:
        order = [tensor for tensor in self.graph.nodes if tensor.op not in _VIEWS]
        homes = self.homes
        for tensor in order:
            fixed = _fixed_home(tensor)
            if fixed is not None:
                homes[id(tensor)] = fixed
        for only_gpu in (True, False):
            for sequence in (order, order[::-1]):
                _spread(sequence, homes, only_gpu=only_gpu)
        for tensor in order:
            homes.setdefault(id(tensor), GPU)
        for tensor in self.graph.nodes:
            if tensor.op in _VIEWS:
                root = tensor.view_src
                homes[id(tensor)] = CPU if root is None else self._home_of(root)
        for leaf in self.graph.leafs:
            homes[id(leaf)] = leaf.side if leaf.external else CPU

    def _home_of(self, tensor: Tensor) -> int:
        return tensor.side if tensor.external else self.homes.get(id(tensor), CPU)

    def _with_copies(self) -> list[Node]:
        """Put the copies of what crosses sides at the start of each split."""
        splits: list[tuple[int, list[Tensor], list[Tensor]]] = []
        copies: dict[tuple[int, int], Tensor] = {}
        for tensor in self.graph.nodes:
            home = self.homes[id(tensor)]
            if not splits or (tensor.op not in _VIEWS and self._opens(splits[-1], tensor, home)):
                splits.append((home, [], []))
            if tensor.op not in _VIEWS:
                self._cross(tensor, home, splits[-1][1], copies)
            splits[-1][2].append(tensor)
        nodes: list[Node] = []
        for home, crossing, computed in splits:
            for source in crossing:
                holder = Tensor("none", source.layout, 0, (source,))
                holder.view_src = source
                nodes.append(Node(holder, self._home_of(source)))
                nodes.append(Node(copies[id(source), home], home))
            nodes += [Node(tensor, self.homes[id(tensor)]) for tensor in computed]
        return nodes

    def _opens(
        self, split: tuple[int, list[Tensor], list[Tensor]], tensor: Tensor, home: int
    ) -> bool:
        if split[0] != home:
            return True
        # A new split lets the copy of an earlier weight be reused.
        return bool(split[1]) and any(
            source.external == "weight" and source.side != home for source in tensor.srcs
        )

    def _cross(
        self,
        tensor: Tensor,
        home: int,
        crossing: list[Tensor],
        copies: dict[tuple[int, int], Tensor],
    ) -> None:
        sources = list(tensor.srcs)
        for place, source in enumerate(sources):
            side = self._home_of(source)
            # The CPU reads nothing of the GPU's, and the GPU nothing of the CPU's.
            if side == home or (source.external == "kv"):
                continue
            key = (id(source), home)
            if key not in copies:
                copies[key] = Tensor("none", source.layout, source.n_bytes)
                crossing.append(source)
            sources[place] = copies[key]
        tensor.srcs = tuple(sources)


def _fixed_home(tensor: Tensor) -> int | None:
    """Side on which an operation must run, by what it writes to or which weights it reads."""
    if tensor.external == "kv":
        return tensor.side
    if tensor.op in ("flash_attn", "rope"):
        return _cache_side(tensor) if tensor.op == "flash_attn" else None
    for source in tensor.srcs:
        if source.external == "weight":
            rows = _rows(tensor)
            return GPU if source.side == CPU and rows >= _OFFLOAD_ROWS else source.side
    return _cache_side(tensor)


def _cache_side(tensor: Tensor) -> int | None:
    """Attention runs beside its cache: reading it across would copy all of it."""
    return next((source.side for source in tensor.srcs if source.external == "kv"), None)


def _rows(tensor: Tensor) -> int:
    if tensor.op == "get_rows":
        return 0
    if tensor.op == "mul_mat":
        return tensor.ne[1]
    if tensor.op == "mul_mat_id":
        return tensor.ne[2]
    return tensor.ne[1] * tensor.ne[2] * tensor.ne[3]


def _spread(order: Sequence[Tensor], homes: dict[int, int], *, only_gpu: bool) -> None:
    current: int | None = None
    for tensor in order:
        home = homes.get(id(tensor))
        if home is None:
            if current is not None:
                homes[id(tensor)] = current
        elif only_gpu and home == CPU:
            current = None
        else:
            current = home
