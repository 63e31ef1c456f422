"""Give a fresh network the circuits that copying and tool calls need, instead of waiting for them.

Copying asks "what followed this token the last time?" and takes two layers: heads that pass the
tokens before on to the next places, and heads that look for a place whose tokens before equal the
current ones, and copy what stands there. A tool call asks for the name of the tool whose
description fits, and the name stands *before* the description: so one more head carries the
first piece of the latest ``"name": "...`` along, and one finds, for a word of the question, where
that word stood before and fetches the name carried there. Random weights find such circuits only after some
ten million tokens, as many as the whole training may see. Written in by hand they work from the
first step, and training goes on from there: nothing is frozen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from demo_model.model import Block, DemoModel, ModelShape

CONSTANT = 2.0  # value of the first embedding axis, the same for all tokens
FAST_PAIRS = 4  # rotary pairs that turn quickly: they tell neighbours apart
RECENT = slice(8, 12)  # rotary pairs that turn once in some hundred tokens: they tell near from far
SLOW_FROM = 12  # rotary pairs from here on hardly turn within a thousand tokens
PASS_ON = 1.5  # strength of the tokens before, beside the token itself
COPY = 3.0  # strength of what is copied
CARRY = 1.5  # strength of the name that is carried along
FETCH = 3.0  # strength of a name fetched from elsewhere, over the one carried along
NAME_OFFSET = 3  # from the word "name" to the first piece of the name: `name`, `":`, ` "`
OFFSETS = (1, 3, 2, 4)  # how far the heads of the first layer look back


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Random orthonormal rows that leave the constant axis alone."""
    basis, _ = torch.linalg.qr(torch.randn(columns - 1, rows))
    return torch.cat([torch.zeros(rows, 1), basis.T], dim=1)


def _rows(weight: Tensor, index: int, size: int) -> Tensor:
    return weight[index * size : (index + 1) * size]


def _sharpen(block: Block, pairs: slice, gain: float) -> None:
    half = block.attn_q_norm.weight.shape[0] // 2
    for norm in (block.attn_q_norm, block.attn_k_norm):
        norm.weight[pairs] = gain
        norm.weight[half + pairs.start : half + pairs.stop] = gain


def _look_back(block: Block, shape: ModelShape, values: Tensor, landings: list[Tensor]) -> None:
    """Heads that attend a fixed number of places before, whatever stands there, and pass it on."""
    size, half = shape.head_size, shape.head_size // 2
    index = torch.arange(0, 2 * FAST_PAIRS, 2, dtype=torch.float32)
    angles = shape.rope_base ** -(index / size)
    for group in range(shape.kv_heads):
        key = _rows(block.attn_k.weight, group, size)
        key.zero_()
        key[:FAST_PAIRS, 0] = 1.0
        _rows(block.attn_v.weight, group, size)[: len(values)] = values
    for head, offset in enumerate(OFFSETS):
        query = _rows(block.attn_q.weight, head, size)
        query.zero_()
        query[:FAST_PAIRS, 0] = (offset * angles).cos()
        query[half : half + FAST_PAIRS, 0] = -(offset * angles).sin()
        columns = slice(head * size, head * size + len(values))
        block.attn_output.weight[:, columns] = PASS_ON * landings[head].T
    _sharpen(block, slice(0, FAST_PAIRS), 3.0)


@torch.no_grad()
def install(model: DemoModel, name_token: int) -> None:
    """Write the circuits into the first layers; the seed of torch decides the rest.

    ``name_token`` is the id of the word ``name``. In the second layer the first head matches one
    token before and the third head two (pieces of words repeat, pairs of pieces rarely do); the
    second head carries names, which head 0 of the third layer fetches and head 0 of the fourth
    can write out.
    """
    shape = model.shape
    if (shape.heads, shape.kv_heads) != (4, 2):
        raise ValueError("the circuits are laid out for four heads that share two groups")
    size, half = shape.head_size, shape.head_size // 2
    slow = torch.cat([torch.arange(SLOW_FROM, half), torch.arange(half + SLOW_FROM, size)])
    wide = len(slow)
    model.token_embd.weight[:, 0] = CONSTANT
    values = _orthonormal(wide, shape.width)
    space = _orthonormal(len(OFFSETS) * wide + size, shape.width)
    landings = [_rows(space, index, wide) for index in range(len(OFFSETS))]
    carried = space[len(OFFSETS) * wide :]
    one_before, three_before, two_before, _ = landings
    _look_back(model.blk[0], shape, values, landings)

    block = model.blk[1]
    copied = _orthonormal(shape.kv_heads * size, shape.width)
    block.attn_v.weight.copy_(copied)
    single, pair = slow, slow[::2]
    other = slow[1::2]
    for head, group, used in ((0, 0, single), (2, 1, pair)):
        query = _rows(block.attn_q.weight, head, size)
        key = _rows(block.attn_k.weight, group, size)
        query.zero_()
        key.zero_()
        query[used] = values[: len(used)]
        key[used] = one_before[: len(used)]
        rows = _rows(copied, group, size)
        block.attn_output.weight[:, head * size : (head + 1) * size] = COPY * rows.T
    # The query's token before, as passed on, against the key's token two before.
    _rows(block.attn_q.weight, 2, size)[other] = one_before[: len(other)]
    _rows(block.attn_k.weight, 1, size)[other] = two_before[: len(other)]

    wanted = values @ model.token_embd.weight[name_token]
    _rows(block.attn_k.weight, 0, size)[RECENT] = 0.7 * (wanted / wanted.norm()) @ three_before
    query = _rows(block.attn_q.weight, 1, size)
    query.zero_()
    query[RECENT, 0] = 1.0
    block.attn_output.weight[:, size : 2 * size] = CARRY * carried.T
    _sharpen(block, slice(RECENT.start, half), 2.0)

    block = model.blk[2]
    _rows(block.attn_q.weight, 0, size).zero_()
    _rows(block.attn_k.weight, 0, size).zero_()
    block.attn_q.weight[slow] = values
    block.attn_k.weight[slow] = one_before
    _rows(block.attn_v.weight, 0, size).copy_(carried)
    block.attn_output.weight[:, :size] = FETCH * carried.T
    _sharpen(block, slice(SLOW_FROM, half), 2.0)

    reader = model.blk[3]
    _rows(reader.attn_v.weight, 0, size).copy_(carried)
    reader.attn_output.weight[:, :size] = _rows(copied, 0, size).T
