"""Which tensors a shape has, and the types that llama.cpp's quantizer gives them for Q4_K_M."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import gguf

from synthetic.shapes import Shape

Q4_K, Q6_K = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K
F32 = gguf.GGMLQuantizationType.F32
BLOCK = 256
BYTES = {Q4_K: 144, Q6_K: 210}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write; `shape` as numpy has it, rows before columns, experts before rows."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    gain: float = 1.0
    """Standard deviation of the weights times the square root of the columns; of a vector, each value."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the data."""
        elements = math.prod(self.shape)
        return elements * 4 if self.kind == F32 else elements // BLOCK * BYTES[self.kind]


def more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M gives this layer's attn_v and ffn_down six bits (llama-quant.cpp, `use_more_bits`)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensors(shape: Shape) -> Iterator[Tensor]:
    """Yield every tensor in file order."""
    vocabulary = (shape.n_vocab, shape.embedding)
    # Tied embeddings are also the output head. A gain of 3 spreads the logits like those of a
    # trained model.
    yield Tensor("token_embd.weight", vocabulary, Q6_K if shape.tied else Q4_K, 3.0)
    yield Tensor("output_norm.weight", (shape.embedding,), F32)
    if not shape.tied:
        yield Tensor("output.weight", vocabulary, Q6_K, 3.0)
    for layer in range(shape.layers):
        wide = Q6_K if more_bits(layer, shape.layers) else Q4_K
        for tensor in (*_attention(shape, wide), *_feed_forward(shape, wide)):
            yield Tensor(f"blk.{layer}.{tensor.name}", tensor.shape, tensor.kind, tensor.gain)


def _attention(shape: Shape, wide: gguf.GGMLQuantizationType) -> Iterator[Tensor]:
    width = shape.embedding
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    yield Tensor("attn_norm.weight", (width,), F32)
    if shape.architecture == "phi3":
        yield Tensor("attn_qkv.weight", (queries + 2 * keys, width), wide)
    else:
        yield Tensor("attn_q.weight", (queries, width), Q4_K)
        yield Tensor("attn_k.weight", (keys, width), Q4_K)
        yield Tensor("attn_v.weight", (keys, width), wide)
    if shape.architecture in ("qwen3", "qwen3moe"):
        yield Tensor("attn_q_norm.weight", (shape.head_size,), F32)
        yield Tensor("attn_k_norm.weight", (shape.head_size,), F32)
    if shape.architecture == "qwen2":
        for name, size in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
            yield Tensor(f"{name}.bias", (size,), F32, 0.0)
    yield Tensor("attn_output.weight", (width, queries), Q4_K)


def _feed_forward(shape: Shape, wide: gguf.GGMLQuantizationType) -> Iterator[Tensor]:
    width, inner = shape.embedding, shape.feed_forward
    yield Tensor("ffn_norm.weight", (width,), F32)
    if shape.experts:
        many, inner = shape.experts, shape.expert_feed_forward
        yield Tensor("ffn_gate_inp.weight", (many, width), F32)
        yield Tensor("ffn_gate_exps.weight", (many, inner, width), Q4_K)
        yield Tensor("ffn_up_exps.weight", (many, inner, width), Q4_K)
        yield Tensor("ffn_down_exps.weight", (many, width, inner), wide)
        return
    if shape.architecture == "phi3":
        yield Tensor("ffn_up.weight", (2 * inner, width), Q4_K)
    else:
        yield Tensor("ffn_gate.weight", (inner, width), Q4_K)
        yield Tensor("ffn_up.weight", (inner, width), Q4_K)
    yield Tensor("ffn_down.weight", (width, inner), wide)
