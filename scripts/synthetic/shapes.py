"""Dimensions of named models, from the config.json that their publishers ship."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["qwen3", "qwen3moe", "qwen2", "phi3"]


@dataclass(frozen=True)
class Shape:
    """A model's dimensions. Heads × head size may differ from the embedding (Qwen3)."""

    architecture: Architecture
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    feed_forward: int
    tied: bool = False
    """Whether token embeddings are the output head too."""
    head_size: int = 128
    n_vocab: int = 151_936
    context_length: int = 40_960
    rope_base: float = 1e6
    rms_epsilon: float = 1e-6
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0


def _qwen3(
    layers: int, embedding: int, heads: int, feed_forward: int, *, tied: bool = False
) -> Shape:
    return Shape("qwen3", layers, embedding, heads, 8, feed_forward, tied)


QWEN2_7B = Shape("qwen2", 28, 3584, 28, 4, 18944, n_vocab=152_064, context_length=32_768)
SHAPES = {
    "qwen3-0.6b": _qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 32, 12288),
    "qwen3-14b": _qwen3(40, 5120, 40, 17408),
    "qwen3-32b": _qwen3(64, 5120, 64, 25600),
    "qwen3-30b-a3b": Shape(
        *("qwen3moe", 48, 2048, 32, 4, 6144), experts=128, experts_used=8, expert_feed_forward=768
    ),
    "qwen2-7b": QWEN2_7B,
    "qwen2.5-7b": QWEN2_7B,
    # Phi-3-mini-4k-instruct.
    "phi-3": Shape(
        *("phi3", 32, 3072, 32, 32, 8192),
        head_size=96,
        n_vocab=32_064,
        context_length=4096,
        rope_base=1e4,
        rms_epsilon=1e-5,
    ),
}


def find_shape(name: str) -> tuple[str, Shape]:
    """Return the full name and the shape of `qwen3-32b`, `qwen3:32b` or `32b`. Raises `KeyError`."""
    wanted = name.lower().replace(":", "-")
    for full in (wanted, f"qwen3-{wanted}"):
        if full in SHAPES:
            return full, SHAPES[full]
    raise KeyError(name)
