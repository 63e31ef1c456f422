"""The decoder's compute graph, driven by which tensors each layer has (llama-graph.cpp, models/*.cpp).

Most architectures differ in what a layer holds, not in how the graph is put together: norms and
biases here or there, a fused QKV, experts. So one builder reads the tensors' names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.catalog.plan.graph import Graph, Tensor, strides
from server.catalog.plan.shape import Layer, ModelShape, Weight

_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma-embedding")
_CAPPED = ("gemma2",)
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


class Builder:
    """Builds one graph. `home` says where a weight lies, `cache_home` where a layer's cache does."""

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

    def build(self, kept: Sequence[int]) -> Graph:
        """Build embedding, the layers `kept` (indices, ascending) and the head."""
        g, shape, run = self.graph, self.shape, self.run
        tokens = g.input("i32", run.tokens)
        table = g.weight(self.home(self._weight("token_embd.weight")))
        embedded = g.new("get_rows", "f32", (shape.n_embd, run.tokens), table, tokens)
        g.expand(embedded)
        # The other way in, embeddings instead of tokens, is reserved though no row takes it.
        g.expand(g.input("f32", shape.n_embd, run.tokens))
        if shape.architecture in _GEMMA:
            embedded = g.like("scale", embedded)
        self.positions = g.input("i32", run.tokens)
        self.masks = {swa: self._attention_inputs() for swa in {shape.layers[i].swa for i in kept}}
        self.out_ids = g.input("i32", run.outputs)
        hidden = embedded
        for number in kept:
            hidden = self._layer(number, hidden, last=number == kept[-1])
        self._head(hidden)
        return g

    def _attention_inputs(self) -> _AttentionInputs:
        g, run = self.graph, self.run
        return _AttentionInputs(
            k_rows=g.input("i64", run.tokens),
            v_rows=g.input("i64", run.tokens if run.flash else run.tokens * self.widest),
            mask=g.input(
                "f16" if run.flash else "f32", run.n_kv, run.tokens // run.streams, 1, run.streams
            ),
            k_rotation=self._rotation(keys=True),
            v_rotation=self._rotation(keys=False),
        )

    def _rotation(self, *, keys: bool) -> Tensor | None:
        """Make the Hadamard matrix by which llama.cpp spreads outliers before quantizing K and V."""
        heads = {layer.head_k if keys else layer.head_v for layer in self.shape.layers}
        if not self.quantized or len(heads) != 1 or (head := heads.pop()) % 64:
            return None
        size = 64
        while keys and head % (size * 2) == 0:
            size *= 2
        return self.graph.input("f32", size, size)

    def _weight(self, name: str) -> Weight:
        return next(weight for weight in self.shape.weights if weight.name == name)

    # What follows mirrors the order of build_attn, build_ffn and build_moe_ffn.

    def _layer(self, number: int, residual: Tensor, *, last: bool) -> Tensor:
        g, layer = self.graph, self.shape.layers[number]
        normed = self._norm(layer, residual, "attn_norm")
        attended = self._attention(number, layer, normed)
        if last:
            ids = self.out_ids
            width = self.shape.n_embd
            attended = g.new("get_rows", "f32", (width, self.run.outputs), attended, ids)
            residual = g.new("get_rows", "f32", (width, self.run.outputs), residual, ids)
        attended = self._norm(layer, attended, "post_attention_norm", required=False)
        middle = g.like("add", attended, residual)
        fed = middle
        for name in ("ffn_norm", "post_attention_norm"):
            if f"{name}.weight" in layer.tensors and (
                name == "ffn_norm" or self.shape.architecture == "gpt-oss"
            ):
                fed = self._norm(layer, middle, name)
                break
        out = self._experts(layer, fed) if layer.rows("ffn_gate_inp") else self._dense(layer, fed)
        out = self._norm(layer, out, "post_ffw_norm", required=False)
        return g.like("add", out, middle)

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

    def _attention(self, number: int, layer: Layer, normed: Tensor) -> Tensor:
        g, run = self.graph, self.run
        inputs = self.masks[layer.swa]
        query, key, value = self._qkv(layer, normed)
        query = self._positioned(layer, query, "attn_q_norm")
        key = self._positioned(layer, key, "attn_k_norm")
        if self.shape.architecture in _GEMMA:
            query = g.like("scale", query)
        if inputs.k_rotation is not None:
            query, key = (self._rotated(t, inputs.k_rotation) for t in (query, key))
        if inputs.v_rotation is not None:
            value = self._rotated(value, inputs.v_rotation)
        for tensor in (query, value, key):
            g.expand(tensor)
        k_cache, v_cache = (g.cache(self.cache_home(number)) for _ in range(2))
        if layer.has_kv:
            self._store(k_cache, key, inputs.k_rows, layer.n_embd_k)
            if run.flash:
                self._store(v_cache, value, inputs.v_rows, layer.n_embd_v)
            else:
                self._store_transposed(v_cache, value, inputs.v_rows, layer)
        query = g.view(query, (layer.head_k, layer.n_head, run.tokens // run.streams, run.streams))
        query = self._permuted(query)
        attended = (
            self._flash(layer, query, k_cache, v_cache, inputs)
            if run.flash
            else self._plain(layer, query, k_cache, v_cache, inputs)
        )
        g.expand(attended)
        if inputs.v_rotation is not None:
            attended = self._rotated(attended, inputs.v_rotation)
        return (
            self._matmul(layer, "attn_output", attended) if layer.rows("attn_output") else attended
        )

    def _qkv(self, layer: Layer, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, tokens = self.graph, self.run.tokens
        shapes = (
            (layer.head_k, layer.n_head, tokens),
            (layer.head_k, layer.n_head_kv, tokens),
            (layer.head_v, layer.n_head_kv, tokens),
        )
        if not layer.rows("attn_qkv"):
            names = (
                ("attn_q", "attn_k", "attn_v")
                if layer.rows("attn_v")
                else ("attn_q", "attn_k", "attn_k")
            )
            made = [self._matmul(layer, name, normed) for name in names]
            q, k, v = (g.view(t, ne, op="reshape") for t, ne in zip(made, shapes, strict=True))
            return q, k, v
        fused = self._matmul(layer, "attn_qkv", normed)
        row = fused.layout[2][1]
        offset, views = 0, []
        for width, heads, _ in shapes:
            nb = (4, 4 * width, row, row * tokens)
            views.append(g.strided(fused, (width, heads, tokens), nb, offset=offset))
            offset += 4 * width * heads
        return views[0], views[1], views[2]

    def _positioned(self, layer: Layer, tensor: Tensor, name: str) -> Tensor:
        g = self.graph
        if f"{name}.weight" in layer.tensors:
            tensor = self._norm(layer, tensor, name)
        return g.like("rope", tensor, self.positions)

    def _rotated(self, tensor: Tensor, rotation: Tensor) -> Tensor:
        g, size = self.graph, rotation.ne[0]
        count = tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3] // size
        if tensor.contiguous:
            flat = g.view(tensor, (size, count), op="reshape")
        else:
            flat = g.new("cont", "f32", (size, count), tensor)
        return g.view(
            g.new("mul_mat", "f32", (size, count), rotation, flat), tensor.ne, op="reshape"
        )

    def _store(self, cache: Tensor, tensor: Tensor, rows: Tensor, width: int) -> None:
        g = self.graph
        flat = g.view(tensor, (width, self.run.tokens))
        made = g.view(cache, (1,), op="set_rows")
        made.srcs = (flat, rows, cache)
        g.expand(made)

    def _store_transposed(self, cache: Tensor, value: Tensor, rows: Tensor, layer: Layer) -> None:
        g, tokens = self.graph, self.run.tokens
        if value.contiguous:
            flat = g.view(value, (layer.n_embd_v, tokens), op="reshape")
        else:
            flat = g.new("cont", "f32", (layer.n_embd_v, tokens), value)
        if layer.n_embd_v < self.widest:
            flat = g.new("pad", "f32", (self.widest, tokens), flat)
        single = g.view(flat, (1, self.widest * tokens), op="reshape")
        made = g.view(cache, (1,), op="set_rows")
        made.srcs = (single, rows, cache)
        g.expand(made)

    def _permuted(self, tensor: Tensor) -> Tensor:
        ne, nb = tensor.layout[1], strides(tensor.layout[0], tensor.layout[1])
        made = self.graph.strided(
            tensor, (ne[0], ne[2], ne[1], ne[3]), (nb[0], nb[2], nb[1], nb[3])
        )
        made.op = "permute"
        return made

    def _flash(
        self, layer: Layer, query: Tensor, k: Tensor, v: Tensor, inputs: _AttentionInputs
    ) -> Tensor:
        g, run = self.graph, self.run
        per_stream = run.tokens // run.streams
        keys, values = g.view(k, (1,)), g.view(v, (1,))
        if run.kv_type == "f32":
            # The kernels have no float32 form: llama.cpp casts the whole cache, layer by layer.
            keys = g.new("cast", "f16", (layer.n_embd_k, run.n_kv, run.streams), keys)
            values = g.new("cast", "f16", (layer.n_embd_v, run.n_kv, run.streams), values)
        made = g.new(
            "flash_attn",
            "f32",
            (layer.head_v, layer.n_head, per_stream, run.streams),
            query,
            keys,
            values,
            inputs.mask,
        )
        if self.quantized or run.kv_type != "f16":
            # CUDA's kernels for many rows want K and V as f16, behind the result (fattn-common.cuh).
            cells = run.n_kv * run.streams
            made.gpu_scratch = 256 + 2 * cells * (layer.n_embd_k + layer.n_embd_v)
        return g.view(made, (layer.head_v * layer.n_head, run.tokens), op="reshape")

    def _plain(
        self, layer: Layer, query: Tensor, k: Tensor, v: Tensor, inputs: _AttentionInputs
    ) -> Tensor:
        g, run = self.graph, self.run
        per_stream = run.tokens // run.streams
        scores = g.new(
            "mul_mat",
            "f32",
            (run.n_kv, per_stream, layer.n_head, run.streams),
            g.view(k, (1,)),
            query,
        )
        if self.shape.architecture in _CAPPED:
            scores = g.like("scale", g.like("unary", g.like("scale", scores)))
        weights = g.like("soft_max", scores, inputs.mask)
        mixed = g.new(
            "mul_mat",
            "f32",
            (layer.head_v, per_stream, layer.n_head, run.streams),
            g.view(v, (1,)),
            weights,
        )
        return g.new(
            "cont", "f32", (layer.head_v * layer.n_head, run.tokens), self._permuted(mixed)
        )

    def _dense(self, layer: Layer, fed: Tensor) -> Tensor:
        g = self.graph
        up = self._matmul(layer, "ffn_up", fed)
        if layer.rows("ffn_gate"):
            gate = self._matmul(layer, "ffn_gate", fed)
            acted = g.like("glu", gate, up)
        elif layer.rows("ffn_up") == 2 * layer.tensors["ffn_down.weight"].dimensions[0]:
            acted = g.new("glu", "f32", (up.ne[0] // 2, up.ne[1]), up)
        else:
            acted = g.like("unary", up)
        return self._matmul(layer, "ffn_down", acted)

    def _experts(self, layer: Layer, fed: Tensor) -> Tensor:
        g = self.graph
        rows, used = fed.ne[1], layer.n_expert_used
        width = fed.ne[0]
        logits = self._matmul(layer, "ffn_gate_inp", fed)
        count = logits.ne[0]
        probs = g.like("soft_max", logits)
        chosen = self._chosen(layer, probs, count, used, rows)
        cube = g.view(probs, (1, count, rows), op="reshape")
        weights = g.new("get_rows", "f32", (1, used, rows), cube, chosen)
        if self.shape.architecture not in ("gpt-oss", "llama4", "qwen2moe"):
            flat = g.view(weights, (used, rows), op="reshape")
            total = g.like("clamp", g.new("sum_rows", "f32", (1, rows), flat))
            weights = g.view(g.like("div", flat, total), (1, used, rows), op="reshape")
        g.expand(weights)
        each = g.view(fed, (width, 1, rows), op="reshape")
        if "ffn_gate_up_exps.weight" in layer.tensors:
            both = self._by_expert(layer, "ffn_gate_up_exps", each, chosen)
            half = both.ne[0] // 2
            parts = [
                g.strided(both, (half, used, rows), both.layout[2], offset=4 * half * i)
                for i in range(2)
            ]
            acted = g.new("glu", "f32", (half, used, rows), *parts)
        else:
            up = self._by_expert(layer, "ffn_up_exps", each, chosen)
            if "ffn_gate_exps.weight" in layer.tensors:
                gate = self._by_expert(layer, "ffn_gate_exps", each, chosen)
                acted = g.like("glu", gate, up)
            else:
                acted = g.like("unary", up)
        outs = g.like("mul", self._by_expert(layer, "ffn_down_exps", acted, chosen), weights)
        g.expand(outs)
        summed = self._sum_experts(outs, used, rows, width)
        return self._with_shared_expert(layer, fed, summed)

    def _chosen(self, layer: Layer, probs: Tensor, count: int, used: int, rows: int) -> Tensor:
        g = self.graph
        scored = probs
        if bias := layer.tensors.get("exp_probs_b.bias"):
            scored = g.like("add", probs, self._external(bias))
        order = g.new("argsort", "i32", (count, rows), scored)
        return g.strided(order, (used, rows), order.layout[2])

    def _by_expert(self, layer: Layer, name: str, tensor: Tensor, chosen: Tensor) -> Tensor:
        g, weight = self.graph, layer.tensors[f"{name}.weight"]
        ne = (weight.dimensions[1], chosen.ne[0], chosen.ne[1])
        made = g.new("mul_mat_id", "f32", ne, self._external(weight), tensor, chosen)
        if bias := layer.tensors.get(f"{name}.bias"):
            made = g.like("add_id", made, self._external(bias), chosen)
        return made

    def _sum_experts(self, outs: Tensor, used: int, rows: int, width: int) -> Tensor:
        g, nb = self.graph, outs.layout[2]
        parts = [
            g.strided(outs, (width, rows), (nb[0], nb[2], nb[3], nb[3]), offset=i * nb[1])
            for i in range(used)
        ]
        for part in parts:
            g.expand(part)
        summed = parts[0]
        for part in parts[1:]:
            summed = g.like("add", summed, part)
            g.expand(summed)
        return g.like("cont", summed) if used == 1 else summed

    def _with_shared_expert(self, layer: Layer, fed: Tensor, summed: Tensor) -> Tensor:
        g = self.graph
        if not layer.rows("ffn_up_shexp"):
            return summed
        up = self._matmul(layer, "ffn_up_shexp", fed)
        gate = self._matmul(layer, "ffn_gate_shexp", fed)
        shared = self._matmul(layer, "ffn_down_shexp", g.like("glu", gate, up))
        if "ffn_gate_inp_shexp.weight" in layer.tensors:
            weight = self._external(layer.tensors["ffn_gate_inp_shexp.weight"])
            score = g.new("mul_mat", "f32", (1, fed.ne[1]), weight, fed)
            gated = g.like("div", g.like("unary", score), score)
            shared = g.like("mul", shared, gated)
        return g.like("add", summed, shared)

    def _head(self, hidden: Tensor) -> None:
        g, shape = self.graph, self.shape
        normed = g.like(self.norm_op, hidden)
        named = {weight.name: weight for weight in shape.weights}
        for name, op in (("output_norm.weight", "mul"), ("output_norm.bias", "add")):
            if name in named:
                normed = g.like(op, normed, self._external(named[name]))
        head = named.get("output.weight") or named["token_embd.weight"]
        side = self.home(head) if "output.weight" in named else self.cache_home(shape.n_layer)
        logits = g.new(
            "mul_mat",
            "f32",
            (shape.n_vocab, hidden.ne[1]),
            g.weight(side, head.n_bytes),
            normed,
        )
        if shape.architecture == "gemma2":
            logits = g.like("scale", g.like("unary", g.like("scale", logits)))
        g.expand(logits)


@dataclass(frozen=True, slots=True)
class _AttentionInputs:
    k_rows: Tensor
    v_rows: Tensor
    mask: Tensor
    k_rotation: Tensor | None
    v_rotation: Tensor | None
