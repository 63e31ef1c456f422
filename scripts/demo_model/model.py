"""The demo model's network: Qwen3's architecture, small.

RMSNorm before each block, RMSNorm on every query and key head, rotary positions in the "neox"
layout (the two halves of a head rotate against each other), grouped-query attention, SwiGLU and
tied embeddings. Parameter names are those of the GGUF tensors with dots replaced, so that the
export is a plain loop. Source of the layout: Qwen3's reference implementation and llama.cpp's
graph builder for the ``qwen3`` architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

SHORT = 640  # rows up to this length are attended without the fused kernel


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the network. ``width`` and ``ffn`` must divide by 32 for Q8_0."""

    vocab: int
    layers: int = 5
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    ffn: int = 512
    rope_base: float = 1e6
    norm_eps: float = 1e-6
    context: int = 32768


class RmsNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` in its own dtype."""
        return fn.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rope_tables(shape: ModelShape, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables, (len(positions), head_size), for the neox layout."""
    half = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
    angles = positions.float()[:, None] * (shape.rope_base**-half)[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to ``x`` (batch, heads, time, head_size)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention in the dtype of ``v``; causal unless there is a mask or a single query.

    Short rows are multiplied out: on a CPU in bfloat16 the fused kernel's backward pass takes
    several times as long. Long rows use the fused kernel, which needs no (time, time) scores.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)
    time = q.shape[2]
    if mask is not None or time == 1 or time > SHORT:
        causal = mask is None and time > 1
        return fn.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        return torch.softmax(scores.masked_fill(future, -1e4), dim=-1) @ v


class KvCache:
    """Keys and values of one layer during generation, grown by concatenation."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append along time and return everything so far."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width, size = shape.width, shape.head_size
        self.shape = shape
        self.attn_norm = RmsNorm(width, shape.norm_eps)
        self.ffn_norm = RmsNorm(width, shape.norm_eps)
        self.attn_q_norm = RmsNorm(size, shape.norm_eps)
        self.attn_k_norm = RmsNorm(size, shape.norm_eps)
        self.attn_q = nn.Linear(width, shape.heads * size, bias=False)
        self.attn_k = nn.Linear(width, shape.kv_heads * size, bias=False)
        self.attn_v = nn.Linear(width, shape.kv_heads * size, bias=False)
        self.attn_output = nn.Linear(shape.heads * size, width, bias=False)
        self.ffn_gate = nn.Linear(width, shape.ffn, bias=False)
        self.ffn_up = nn.Linear(width, shape.ffn, bias=False)
        self.ffn_down = nn.Linear(shape.ffn, width, bias=False)

    def mix(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KvCache | None,
    ) -> Tensor:
        """What the heads gather for ``x`` (batch, time, width), before their projection."""
        h = self.attn_norm(x)
        batch, time, _ = h.shape
        size = self.shape.head_size
        q = self.attn_q_norm(self.attn_q(h).view(batch, time, -1, size)).transpose(1, 2)
        k = self.attn_k_norm(self.attn_k(h).view(batch, time, -1, size)).transpose(1, 2)
        v = self.attn_v(h).view(batch, time, -1, size).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.extend(k, v)
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return attend(q, k, v, mask).transpose(1, 2).reshape(batch, time, -1)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add the projected heads and the feed-forward; works on any leading axes."""
        x = x + self.attn_output(mixed)
        h = self.ffn_norm(x)
        result: Tensor = x + self.ffn_down(fn.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return result


class DemoModel(nn.Module):
    """Token ids in, final hidden states out; ``logits`` applies the tied head."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.output_norm = RmsNorm(shape.width, shape.norm_eps)
        self._init_weights()

    def _init_weights(self) -> None:
        """Start as the identity: blocks add nothing yet, so tokens are easy to find and to copy."""
        nn.init.normal_(self.token_embd.weight, std=0.5)
        nn.init.constant_(self.output_norm.weight, 0.1)
        for name, weight in self.blk.named_parameters():
            if "attn_output" in name or "ffn_down" in name:
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[KvCache] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (batch, time, width) after the last norm.

        ``positions`` is (time,) or (batch, time); ``mask`` is additive or boolean, (batch, 1,
        time, time so far); both default to plain causal attention from position 0. With ``keep``
        (batch, time) only the states it marks are finished and returned, as (marked, width).
        """
        if positions is None:
            positions = torch.arange(ids.shape[1])
        cos, sin = rope_tables(self.shape, positions.reshape(-1))
        if positions.ndim == 2:
            cos = cos.view(*positions.shape, -1)[:, None]
            sin = sin.view(*positions.shape, -1)[:, None]
        x = self.token_embd(ids)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for index, block in enumerate(self.blk):
            mixed = block.mix(x, cos, sin, mask, caches[index] if caches else None)
            if keep is not None and index == len(self.blk) - 1:
                x, mixed = x[keep], mixed[keep]
            x = block.finish(x, mixed)
        hidden: Tensor = self.output_norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary from hidden states; the head shares the embedding."""
        return fn.linear(hidden, self.token_embd.weight)
