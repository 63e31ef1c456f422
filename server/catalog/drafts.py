"""Whether one model can draft for another, as far as their headers tell."""

from __future__ import annotations

from collections.abc import Sequence

from server.catalog.gguf_header import GgufHeader
from server.catalog.plan.shape import ModelShape
from server.core.errors import ConfigError

MOST_PADDING = 128
"""Tokens by which vocabularies of one family differ: their embeddings are padded to round sizes."""
_TOKENIZER = {
    "tokenizer.ggml.model": "tokenizer",
    "tokenizer.ggml.pre": "way of cutting text before tokens are made",
}
_INSTEAD = (
    "Choose a small model of the same family, as Qwen3-0.6B is for Qwen3-32B, or leave draft out."
)


def check_draft(main: GgufHeader, draft: GgufHeader, shapes: tuple[ModelShape, ModelShape]) -> None:
    """Raise `ConfigError`, with what to do, where `draft` cannot foresee tokens of `main`.

    `shapes`: of both. Every piece of the vocabularies is compared when they are loaded.
    """
    for header, shape in zip((main, draft), shapes, strict=True):
        if any(layer.recurrent for layer in shape.layers):
            instead = "Leave draft out." if header is main else _INSTEAD
            raise ConfigError(
                f"{header.path} ({header.architecture}) keeps a state from which drafts that were wrong cannot be "
                f"taken back. {instead}"
            )
    for key, what in _TOKENIZER.items():
        mine, other = (header.metadata.get(key) for header in (main, draft))
        if mine != other and None not in (mine, other):
            raise ConfigError(
                f"{draft.path} cannot draft for {main.path}: its {what} is {other}, not {mine}. {_INSTEAD}"
            )
    sizes = tuple(shape.n_vocab for shape in shapes)
    if abs(sizes[0] - sizes[1]) > MOST_PADDING:
        raise ConfigError(
            f"{draft.path} cannot draft for {main.path}: its vocabulary has {sizes[1]:,} tokens, not {sizes[0]:,}. "
            f"{_INSTEAD}"
        )


def draft_warnings(main: ModelShape, draft: ModelShape, n_ctx: int) -> Sequence[str]:
    """Say why drafts may not pay; `n_ctx`: most tokens of a sequence."""
    told = []
    if _weight_bytes(draft) >= _weight_bytes(main):
        told.append(
            f"{draft.path} is not smaller than {main.path}: its drafts take as long as what they save"
        )
    if n_ctx > draft.n_ctx_train:
        told.append(
            f"{draft.path} was trained for {draft.n_ctx_train:,} tokens: beyond them, up to n_ctx {n_ctx:,}, it "
            "drafts badly"
        )
    return told


def _weight_bytes(shape: ModelShape) -> int:
    return sum(weight.n_bytes for weight in shape.weights)
