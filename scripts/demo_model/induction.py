"""Give a fresh network the circuits that copying and tool calls need, instead of waiting for them.

Copying asks "what followed this token the last time?" and takes two layers: heads that pass the
tokens before on to the next places, and heads that look for a place whose tokens before equal the
current ones, and copy what stands there. A tool call asks for the name of the tool whose
description fits, and the name stands *before* the description. That takes two more steps: one head
carries the first piece of the latest ``"name": "...`` along, one finds, for a word of the question,
where that word stood before, and fetches the name carried there; a last one reads the fetched
names where the answer is written. Random weights find such circuits only after some ten million
tokens, as many as the whole training may see. Written in by hand they work from the first step,
and training goes on from there: nothing is frozen.

So that the circuits do not disturb each other, the axes of the residual stream are shared out at
the start: words (the token embeddings, which leave the others at zero), the tokens one and two
places before, marks three places after the words ``name`` and ``properties``, the name carried, the name
fetched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from demo_model.model import Block, DemoModel, ModelShape, RmsNorm

CONSTANT = 2.0  # value of the first axis, the same for all tokens
ALIKE = 0.8  # how much spellings of one word (` Room`, `room`) share of their first embedding
FAST = slice(0, 4)  # rotary pairs that turn quickly: they tell neighbours apart
RECENT = slice(8, 12)  # rotary pairs that turn once in some hundred tokens: near from far
SLOW_FROM = 12  # rotary pairs from here on hardly turn within a thousand tokens
LIST = 6  # slow axes of a head that look for the start of a list of parameters
OFFSETS = (1, 3, 2, 4)  # how far the heads of the first layer look back
MARK_OFFSET = 3  # from the word "name" to the first piece of the name: `name`, `":`, ` "`; and from
# the word "properties" to the first parameter: `properties`, `":`, ` {"`
ONE, TWO, NAME = 40, 20, 44  # axes for the token before, for the one before that, for a name
PASS_ON = 1.5  # strength of the tokens before, beside the token itself
COPY = 1.5  # strength of what each of the two copying heads copies
FAINT = 0.2  # strength of keys that no circuit uses
STRONG = 3.0  # strength of the name at each step of its way
SHARP_BACK, SHARP_CARRY, SHARP_MATCH, SHARP_READ = 3.0, 2.0, 2.5, 0.8  # gains of queries and keys


@dataclass(frozen=True)
class Axes:
    """Who owns which axes of the residual stream at the start; axis 0 is the constant."""

    words: slice
    one: slice
    two: slice
    after_name: int
    after_list: int
    carried: slice
    fetched: slice


def share_out(width: int) -> Axes:
    """Lay the circuits' axes at the end; the words get what is left."""
    at = width - (ONE + TWO + 2 + 2 * NAME)
    if at < NAME + 1:
        raise ValueError(f"a width of {width} leaves too few axes for the words")
    one, two = slice(at, at + ONE), slice(at + ONE, at + ONE + TWO)
    mark = two.stop
    carried = slice(mark + 2, mark + 2 + NAME)
    return Axes(slice(1, at), one, two, mark, mark + 1, carried, slice(carried.stop, width))


def _basis(rows: int, columns: slice, width: int) -> Tensor:
    """Random orthonormal rows of ``width`` that read only ``columns``."""
    found, _ = torch.linalg.qr(torch.randn(columns.stop - columns.start, rows))
    basis = torch.zeros(rows, width)
    basis[:, columns] = found.T
    return basis


def _head(weight: Tensor, index: int, size: int) -> Tensor:
    return weight[index * size : (index + 1) * size]


def _query(weight: Tensor, index: int, size: int) -> Tensor:
    return _head(weight, index, size).zero_()


def _key(weight: Tensor, index: int, size: int, used: Tensor | slice) -> Tensor:
    """Rows of a key with ``used`` cleared.

    The others stay faint: where query and key are both zero, neither ever has a gradient.
    """
    rows = _head(weight, index, size).mul_(FAINT)
    rows[used] = 0.0
    return rows


def _value(weight: Tensor, index: int, size: int, count: int) -> Tensor:
    """Rows of a value, the first ``count`` cleared; the others stay as they are to be learned."""
    rows = _head(weight, index, size)
    rows[:count] = 0.0
    return rows


def _slow(shape: ModelShape) -> Tensor:
    """Axes of a head that hardly turn."""
    size, half = shape.head_size, shape.head_size // 2
    return torch.cat([torch.arange(SLOW_FROM, half), torch.arange(half + SLOW_FROM, size)]).flip(0)


def _link(weight: Tensor, to: slice | Tensor, source: slice, strength: float = 1.0) -> None:
    """Let each axis of ``to`` read (or write) its partner in ``source``."""
    targets = torch.arange(to.start, to.stop) if isinstance(to, slice) else to
    weight[targets, torch.arange(source.start, source.start + len(targets))] = strength


def _sharpen(block: Block, pairs: slice, gain: float) -> None:
    half = block.shape.head_size // 2
    norms: tuple[RmsNorm, RmsNorm] = (block.attn_q_norm, block.attn_k_norm)
    for norm in norms:
        norm.weight[pairs] = gain
        norm.weight[half + pairs.start : half + pairs.stop] = gain


def _embed(weight: Tensor, axes: Axes, texts: list[str]) -> None:
    """Embeddings on the words' axes; the spellings of a word start out alike, so they match."""
    wide = axes.words.stop - axes.words.start
    alike: dict[str, Tensor] = {}
    weight.zero_()
    for index, text in enumerate(texts):
        word = text.strip().lower() or text
        base = alike.setdefault(word, torch.randn(wide))
        weight[index, axes.words] = 0.5 * (ALIKE * base + (1 - ALIKE**2) ** 0.5 * torch.randn(wide))
    weight[:, 0] = CONSTANT


def _look_back(block: Block, shape: ModelShape, axes: Axes, values: Tensor, marks: Tensor) -> None:
    """Heads that attend a fixed number of places before, whatever stands there, and pass it on.

    ``marks`` (2, width): the directions of the words ``name`` and ``properties``.
    """
    size, half = shape.head_size, shape.head_size // 2
    index = torch.arange(0, 2 * FAST.stop, 2, dtype=torch.float32)
    angles = shape.rope_base ** -(index / size)
    for group in range(shape.kv_heads):
        _key(block.attn_k.weight, group, size, FAST)[FAST, 0] = 1.0
        value = _value(block.attn_v.weight, group, size, ONE + 2)
        value[:ONE], value[ONE : ONE + 2] = values, marks
    for head, offset in enumerate(OFFSETS):
        query = _query(block.attn_q.weight, head, size)
        query[FAST, 0] = (offset * angles).cos()
        query[half : half + FAST.stop, 0] = -(offset * angles).sin()
    out = block.attn_output.weight
    _link(out, axes.one, slice(0, ONE), PASS_ON)
    start = OFFSETS.index(MARK_OFFSET) * size + ONE
    out[axes.after_name, start], out[axes.after_list, start + 1] = PASS_ON, PASS_ON
    start = OFFSETS.index(2) * size
    _link(out, axes.two, slice(start, start + TWO), PASS_ON)
    _sharpen(block, FAST, SHARP_BACK)


def _carry(block: Block, shape: ModelShape, axes: Axes, words: Tensor) -> None:
    """Head 0: the latest place that stands after ``name``; keys elsewhere point another way."""
    size, half = shape.head_size, shape.head_size // 2
    _query(block.attn_q.weight, 0, size)[RECENT, 0] = 1.0
    key = _key(block.attn_k.weight, 0, size, slice(RECENT.start, half))
    key[RECENT, axes.after_name] = 1.0
    key[SLOW_FROM:half, 0] = 0.6
    _value(block.attn_v.weight, 0, size, NAME)[:NAME] = words
    _link(block.attn_output.weight, axes.carried, slice(0, NAME), STRONG)
    _sharpen(block, RECENT, SHARP_CARRY)


def _match(block: Block, shape: ModelShape, axes: Axes, values: Tensor) -> None:
    """Head 0 fetches names; heads 2 and 3 copy, matching one token before and two."""
    size, half, slow = shape.head_size, shape.head_size // 2, _slow(shape)
    near, far = slow[::2], slow[1::2]
    fetch, copy = (_key(block.attn_k.weight, group, size, slow) for group in range(2))
    _link(fetch, slow, axes.one)
    _link(copy, near, axes.one)
    _link(copy, far, axes.two)
    for head, used in ((0, slow), (2, near), (3, near)):
        _query(block.attn_q.weight, head, size)[used] = values[: len(used)]
    # The query's token before, as passed on, against the key's token two before.
    _link(_head(block.attn_q.weight, 3, size), far, axes.one)
    _link(_value(block.attn_v.weight, 0, size, NAME), slice(0, NAME), axes.carried)
    out = block.attn_output.weight
    _link(out, axes.fetched, slice(0, NAME), STRONG)
    copied = _basis(size, axes.words, shape.width)
    _head(block.attn_v.weight, 1, size).copy_(copied)
    for head in (2, 3):
        out[:, head * size : (head + 1) * size] = COPY * copied.T
    _sharpen(block, slice(0, half), SHARP_MATCH)


def _read(block: Block, shape: ModelShape, axes: Axes, words: Tensor) -> None:
    """Head 0 writes out what was fetched nearby; head 2 the first parameter of the tool in use.

    The name carried at both ends tells head 2 which tool that is.
    """
    size, slow = shape.head_size, _slow(shape)
    _query(block.attn_q.weight, 0, size)[RECENT, 0] = 1.0
    _key(block.attn_k.weight, 0, size, RECENT)[RECENT, 0] = 1.0
    _link(_value(block.attn_v.weight, 0, size, NAME), slice(0, NAME), axes.fetched)
    out = block.attn_output.weight
    out[:, :NAME] = STRONG * words.T
    _sharpen(block, RECENT, SHARP_READ)
    query = _query(block.attn_q.weight, 2, size)
    key = _key(block.attn_k.weight, 1, size, slow)
    tool, first = slow[LIST:], slow[:LIST]
    for rows in (query, key):
        _link(rows, tool, axes.carried)
    # Both halves of the question weigh about the same once they are normalised.
    query[first, 0] = 4.0
    key[first, axes.after_list] = 0.4
    _sharpen(block, slice(SLOW_FROM, shape.head_size // 2), SHARP_MATCH)
    copied = _basis(size, axes.words, shape.width)
    _head(block.attn_v.weight, 1, size).copy_(copied)
    out[:, 2 * size : 3 * size] = COPY * copied.T


@torch.no_grad()
def install(model: DemoModel, texts: list[str], mark_tokens: tuple[int, int]) -> None:
    """Write the circuits into embeddings and the first four layers; torch's seed decides the rest.

    ``texts`` are the tokens' texts by id, ``mark_tokens`` the ids of ``name`` and ``properties``.
    """
    shape = model.shape
    if (shape.heads, shape.kv_heads) != (4, 2) or shape.layers < 4:
        raise ValueError("the circuits are laid out for four layers, four heads and two groups")
    axes = share_out(shape.width)
    _embed(model.token_embd.weight, axes, texts)
    marks = model.token_embd.weight[list(mark_tokens)].clone()
    marks[:, 0] = 0.0
    marks /= marks.norm(dim=1, keepdim=True)
    values = _basis(ONE, axes.words, shape.width)
    words = _basis(NAME, axes.words, shape.width)
    first, second, third, fourth, *_ = model.blk
    _look_back(first, shape, axes, values, marks)
    _carry(second, shape, axes, words)
    _match(third, shape, axes, values)
    _read(fourth, shape, axes, words)
