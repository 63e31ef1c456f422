"""Give a fresh network the circuit that copying needs, instead of waiting for it to emerge.

"What followed this token the last time?" takes two layers: heads that pass the token before on to
the next place, and heads that look for a place whose token before equals the current one, and
copy what stands there. Random weights find this circuit only after some ten million tokens, half
of what the whole training may see. Written in by hand it works from the first step, and
training goes on from there: nothing is frozen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from demo_model.model import Block, DemoModel, ModelShape

CONSTANT = 2.0  # value of the first embedding axis, the same for all tokens
FAST_PAIRS = 4  # rotary pairs that turn quickly: they tell neighbours apart
SLOW_FROM = 12  # rotary pairs from here on hardly turn within a thousand tokens
PASS_ON = 1.5  # strength of the token before, beside the token itself
COPY = 3.0  # strength of what is copied


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Random orthonormal rows that leave the constant axis alone."""
    basis, _ = torch.linalg.qr(torch.randn(columns - 1, rows))
    return torch.cat([torch.zeros(rows, 1), basis.T], dim=1)


def _angles(shape: ModelShape, pairs: int) -> Tensor:
    index = torch.arange(0, 2 * pairs, 2, dtype=torch.float32)
    return shape.rope_base ** -(index / shape.head_size)


def _look_back(block: Block, shape: ModelShape, head: int, group: int, offset: int) -> None:
    """Make a head attend to the token ``offset`` places before, whatever the tokens are."""
    size, half = shape.head_size, shape.head_size // 2
    turn = offset * _angles(shape, FAST_PAIRS)
    query, key = torch.zeros(size), torch.zeros(size)
    query[:FAST_PAIRS], query[half : half + FAST_PAIRS] = turn.cos(), -turn.sin()
    key[:FAST_PAIRS] = 1.0
    for weight, index, wanted in ((block.attn_q, head, query), (block.attn_k, group, key)):
        rows = weight.weight[index * size : (index + 1) * size]
        rows.zero_()
        rows[:, 0] = wanted


def _sharpen(block: Block, shape: ModelShape, first: int, last: int, gain: float) -> None:
    half = shape.head_size // 2
    for norm in (block.attn_q_norm, block.attn_k_norm):
        norm.weight[first:last] = gain
        norm.weight[half + first : half + last] = gain


def _pass_on(block: Block, shape: ModelShape, values: Tensor, *, group: int, offset: int) -> Tensor:
    """Write ``values`` of the token ``offset`` places before beside each token; returns where."""
    size = shape.head_size
    head = group * (shape.heads // shape.kv_heads)
    landing = _orthonormal(size, shape.width)
    _look_back(block, shape, head, group, offset)
    block.attn_v.weight[group * size : (group + 1) * size] = values
    block.attn_output.weight[:, head * size : (head + 1) * size] = PASS_ON * landing.T
    return landing


@torch.no_grad()
def install(model: DemoModel) -> None:
    """Write the circuit into the first two layers; the seed of torch decides the rest.

    The second layer's first head matches one token before, its other group's head matches two:
    pieces of words repeat, pairs of pieces rarely do.
    """
    shape = model.shape
    size, half = shape.head_size, shape.head_size // 2
    model.token_embd.weight[:, 0] = CONSTANT
    before, after = model.blk[0], model.blk[1]
    values = _orthonormal(size, shape.width)
    landing = _pass_on(before, shape, values, group=0, offset=1)
    landing_two = _pass_on(before, shape, values, group=1, offset=2)
    _sharpen(before, shape, 0, FAST_PAIRS, 3.0)
    slow = torch.cat([torch.arange(SLOW_FROM, half), torch.arange(half + SLOW_FROM, size)])
    first, second = slow[::2], slow[1::2]
    copied = _orthonormal(shape.kv_heads * size, shape.width)
    after.attn_v.weight.copy_(copied)
    for group in range(shape.kv_heads):
        head = group * (shape.heads // shape.kv_heads)
        query = after.attn_q.weight[head * size : (head + 1) * size]
        key = after.attn_k.weight[group * size : (group + 1) * size]
        query.zero_()
        key.zero_()
        used = slow if group == 0 else first
        query[used] = values[: len(used)]
        key[used] = landing[: len(used)]
        if group == 1:
            # The query's token before, as passed on, against the key's token two before: both
            # show the same axes of the embedding.
            query[second] = landing[: len(second)]
            key[second] = landing_two[: len(second)]
        rows = copied[group * size : (group + 1) * size]
        after.attn_output.weight[:, head * size : (head + 1) * size] = COPY * rows.T
    _sharpen(after, shape, SLOW_FROM, half, 2.0)
