"""The feed-forward half of a layer, dense or with experts (build_ffn, build_moe_ffn of llama-graph.cpp)."""

from __future__ import annotations

from server.catalog.plan.blocks import Blocks
from server.catalog.plan.graph import Tensor
from server.catalog.plan.shape import Layer


class FeedForward(Blocks):
    """Adds the feed-forward to what is under construction."""

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
