"""Wishes that a model cannot meet, whatever the memory: longer contexts, experts it does not have."""

from __future__ import annotations

from dataclasses import dataclass

from server.catalog.plan.shape import ModelShape
from server.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RopeWish:
    """The settings under `model.rope_scaling`; None leaves each to the file."""

    type: str | None = None
    freq_base: float | None = None
    freq_scale: float | None = None
    orig_ctx: int | None = None


def check_context(shape: ModelShape, n_ctx: int, rope: RopeWish | None = None) -> None:
    """Raise `ConfigError` when `n_ctx` tokens go beyond what training and scaling reach."""
    trained = shape.n_ctx_train
    if n_ctx <= trained:
        return
    rope = rope or RopeWish()
    scaled = rope.type in ("linear", "yarn", "longrope") and rope.freq_scale
    reach = int((rope.orig_ctx or trained) / rope.freq_scale) if scaled and rope.freq_scale else 0
    if n_ctx <= reach or (rope.freq_base and rope.type != "none" and not scaled):
        return
    if reach > trained:
        raise ConfigError(
            f"n_ctx {n_ctx} is more than rope scaling reaches: {rope.orig_ctx or trained} tokens / freq_scale "
            f"{rope.freq_scale:g} = {reach}. Lower n_ctx, or lower freq_scale to "
            f"{_scale(rope.orig_ctx or trained, n_ctx):g}."
        )
    original = shape.rope.original_context or trained
    raise ConfigError(
        f"n_ctx {n_ctx} is more than the {trained} tokens that the model was trained for; beyond them answers "
        f"turn into noise. Set n_ctx to at most {trained}, or stretch positions: model.rope_scaling: "
        f"{{type: yarn, freq_scale: {_scale(original, n_ctx):g}, orig_ctx: {original}}}."
    )


def check_experts(shape: ModelShape, n_cpu_moe: int | str) -> None:
    """Raise `ConfigError` when experts are to stay in system memory, and the model has none."""
    if n_cpu_moe in ("auto", 0) or shape.n_expert_layers:
        return
    raise ConfigError(
        f"n_cpu_moe is {n_cpu_moe}, but {shape.name or shape.path} is a dense model: it has no experts to keep in "
        "system memory. Leave n_cpu_moe out; n_gpu_layers moves whole layers."
    )


def _scale(original: int, n_ctx: int) -> float:
    """1 / the whole factor by which positions must be stretched."""
    return 1 / max(2, -(-n_ctx // original))
