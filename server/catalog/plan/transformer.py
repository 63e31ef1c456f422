"""The decoder's compute graph, driven by which tensors each layer has (llama-graph.cpp, models/*.cpp).

Most architectures differ in what a layer holds, not in how the graph is put together: norms and
biases here or there, a fused QKV, experts. So one builder reads the tensors' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.catalog.plan.feed_forward import FeedForward
from server.catalog.plan.graph import Graph, Tensor, strides
from server.catalog.plan.shape import Layer, Weight

_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma-embedding")
_SCALED_QUERY = (*_GEMMA, "phi2", "phi3")
_CAPPED = ("gemma2",)


class Builder(FeedForward):
    """Builds one graph."""

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
        self.two_caches = any(layer.swa for layer in shape.layers)
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
        # Which of two places is taken over depends on their order.
        terms = (middle, out) if self.shape.architecture == "phi3" else (out, middle)
        return g.like("add", *terms)

    def _attention(self, number: int, layer: Layer, normed: Tensor) -> Tensor:
        g, run = self.graph, self.run
        inputs = self.masks[layer.swa]
        query, key, value = self._qkv(layer, normed)
        query = self._positioned(layer, query, "attn_q_norm")
        key = self._positioned(layer, key, "attn_k_norm")
        if self.shape.architecture in _SCALED_QUERY:
            query = g.like("scale", query)
        if inputs.k_rotation is not None:
            query, key = (self._rotated(t, inputs.k_rotation) for t in (query, key))
        if inputs.v_rotation is not None:
            value = self._rotated(value, inputs.v_rotation)
        # With two caches, for windows and for everything, llama.cpp asks for the keys first.
        for tensor in (query, key, value) if self.two_caches else (query, value, key):
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
