"""Draws from the whole vocabulary: what llama.cpp's own samplers leave, in their proportions."""

from __future__ import annotations

import ctypes
import math
import tracemalloc

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.request import SamplingParams
from server.llama.drawing import Drawing, Workspace

pytestmark = pytest.mark.native

SIZES = (1, 7, 256, 257, 1000)


def logits_of(seed: int, size: int, spread: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def drawing(size: int, bias=None, seed: int = 1, **params) -> Drawing:
    return Drawing(Workspace(size), SamplingParams(**params), bias or {}, seed)


def left_by_llama(logits: np.ndarray, top_p: float, min_p: float) -> set[int]:
    """Ids that llama.cpp's own filters leave."""
    size = len(logits)
    candidates = (llama_cpp.llama_token_data * size)()
    for index, logit in enumerate(logits):
        candidates[index] = llama_cpp.llama_token_data(index, float(logit), 0.0)
    array = llama_cpp.llama_token_data_array(candidates, size, -1, False)
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if top_p < 1:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(top_p, 1))
    if min_p > 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_min_p(min_p, 1))
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    left = {int(array.data[index].id) for index in range(array.size)}
    llama_cpp.llama_sampler_free(chain)
    return left


def left_by_us(logits: np.ndarray, top_p: float, min_p: float) -> set[int]:
    one = drawing(len(logits), top_p=top_p, min_p=min_p)
    kept = one._kept(logits, logits.max(), one._space.weights[: len(logits)])
    return set(range(len(logits))) if kept is None else set(np.flatnonzero(kept).tolist())


@settings(max_examples=300)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(SIZES),
    st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0]),
    st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)
def test_filters_leave_what_llama_cpp_leaves(seed, size, spread, top_p, min_p):
    logits = logits_of(seed, size, spread)
    ours, theirs = left_by_us(logits, top_p, min_p), left_by_llama(logits, top_p, min_p)
    # Rounding may decide about the token at the edge.
    assert len(ours ^ theirs) <= 1 + size // 500
    assert int(logits.argmax()) in ours


@pytest.mark.parametrize(
    ("params", "bias"),
    [
        ({}, {}),
        ({"temperature": 0.5}, {}),
        ({"temperature": 2.0, "top_p": 0.8}, {}),
        ({"min_p": 0.1}, {3: 2.0, 5: -math.inf}),
        ({"temperature": 1.5, "top_p": 0.9, "min_p": 0.05}, {0: -1.0}),
    ],
)
def test_tokens_come_as_often_as_they_should(params, bias):
    logits, count = logits_of(3, 300, 2.0), 40_000
    one = drawing(len(logits), bias, **params)
    drawn = np.bincount([one.draw(logits) for _ in range(count)], minlength=len(logits))

    changed = logits.astype(np.float64)
    for token, value in bias.items():
        changed[token] += value
    top_p, min_p = params.get("top_p", 1.0), params.get("min_p", 0.0)
    kept = left_by_llama(changed.astype(np.float32), top_p, min_p)
    weights = np.exp((changed - changed.max()) / params.get("temperature", 1.0))
    weights[[token for token in range(len(logits)) if token not in kept]] = 0
    expected = count * weights / weights.sum()
    assert not drawn[expected == 0].any()
    often = expected >= 5
    statistic = ((drawn - expected)[often] ** 2 / expected[often]).sum()
    freedom = int(often.sum()) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@given(st.integers(0, 2**32 - 1), st.sampled_from(SIZES), st.data())
def test_a_token_without_a_chance_is_never_drawn(seed, size, data):
    logits = logits_of(seed, size, 3.0)
    allowed = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
    logits[[token for token in range(size) if token not in allowed]] = -math.inf
    one = drawing(size, seed=seed, top_p=data.draw(st.sampled_from([0.3, 1.0])))
    assert {one.draw(logits) for _ in range(5)} <= allowed


def test_the_last_token_of_the_last_block_can_be_drawn_and_nothing_behind_it():
    logits = np.full(257, -math.inf, np.float32)
    logits[256] = 1.0
    one = drawing(257)
    one._random = lambda: 1 - 2**-53
    assert one.draw(logits) == 256
    logits[:] = 0.0
    assert one.draw(logits) == 256
    one._random = lambda: 0.0
    assert one.draw(logits) == 0


def test_next_to_no_temperature_takes_the_likeliest():
    logits = logits_of(4, 1000, 1e20)
    assert drawing(1000, temperature=1e-19).draw(logits) == int(logits.argmax())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_where_nothing_is_finite_the_backend_can_tell(value):
    logits = np.full(300, value, np.float32)
    assert not math.isfinite(logits[drawing(300, top_p=0.5).draw(logits)])


def test_the_same_seed_draws_the_same():
    logits = logits_of(5, 1000, 1.0)
    first, again, other = drawing(1000, seed=9), drawing(1000, seed=9), drawing(1000, seed=10)
    drawn = [[one.draw(logits) for _ in range(20)] for one in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_draw_allocates_nothing_of_the_vocabularys_size():
    size = 151_936
    logits = logits_of(6, size, 4.0)
    one = drawing(size, {7: -math.inf}, top_p=0.95, min_p=0.001)
    one.draw(logits)
    tracemalloc.start()
    try:
        one.draw(logits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size
