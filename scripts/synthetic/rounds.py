"""Weights by which text goes round: after each token comes one other token, and after some of them the first again.

Speed and memory are those of the shape: all matrices are there, and are multiplied. Attention and feed-forward add
nothing, because their last matrices are zeros; so the last token's embedding reaches the head, whose rows are the
embeddings in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from synthetic.blocks import PIECE, chunks
from synthetic.shapes import Shape
from synthetic.tensors import Q6_K, Tensor, tensors
from synthetic.vocabulary import first_special

_SILENT = ("attn_output.weight", "ffn_down.weight", "ffn_down_exps.weight")


def successors(n_vocab: int, length: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the token after each token: rounds of `length` ordinary tokens; special ones repeat themselves."""
    ordinary = np.random.default_rng(seed).permutation(first_special(n_vocab))
    after = np.arange(n_vocab)
    for begin in range(0, len(ordinary), length):
        around = ordinary[begin : begin + length]
        after[around] = np.roll(around, -1)
    return after


class Rounds:
    """The tensors of a shape, and their data."""

    def __init__(self, shape: Shape, length: int, seed: int = 0) -> None:
        """`length`: tokens of a round."""
        self.tensors = list(self._changed(tensors(shape)))
        self._after = successors(shape.n_vocab, length, seed)
        self._embedding: npt.NDArray[np.uint8] | None = None

    def data(
        self, tensor: Tensor, random: np.random.Generator
    ) -> Iterator[npt.NDArray[np.generic]]:
        """Yield a tensor's data in pieces."""
        if tensor.name == "token_embd.weight":
            whole = np.concatenate([piece.reshape(-1) for piece in chunks(tensor, random)])
            self._embedding = whole.view(np.uint8).reshape(tensor.shape[0], -1)
            yield self._embedding
        elif tensor.name == "output.weight" and self._embedding is not None:
            # The row of the token that comes next is the embedding of the one before it.
            yield self._embedding[np.argsort(self._after)]
        elif tensor.name.endswith(_SILENT):
            for begin in range(0, tensor.n_bytes, PIECE):
                yield np.zeros(min(PIECE, tensor.n_bytes - begin), dtype=np.uint8)
        else:
            yield from chunks(tensor, random)

    def _changed(self, plain: Iterator[Tensor]) -> Iterator[Tensor]:
        """Give embeddings and head a tensor each, of the same type."""
        for tensor in plain:
            if tensor.name == "token_embd.weight":
                embedding = replace(tensor, kind=Q6_K)
                yield embedding
                yield replace(embedding, name="output.weight")
            elif tensor.name != "output.weight":
                yield tensor


def follow(after: Sequence[int], start: int, count: int) -> list[int]:
    """Return `start` and the tokens behind it, `count` in all."""
    said = [start]
    while len(said) < count:
        said.append(int(after[said[-1]]))
    return said
