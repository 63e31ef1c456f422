"""The synthetic model and the arithmetic of the benchmark."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gguf import quants

import make_synthetic_gguf as synthetic
from bench.client import Stream, steady_rate
from bench_engine import Row
from server.catalog.gguf import check


@pytest.mark.parametrize(
    ("make", "kind"),
    [(synthetic.random_q4_k, synthetic.Q4_K), (synthetic.random_q6_k, synthetic.Q6_K)],
)
def test_random_blocks_decode_to_the_deviation_asked_for(make, kind):
    blocks = make(np.random.default_rng(0), 400, 1 / math.sqrt(1024))
    weights = quants.dequantize(blocks, kind)
    assert weights.shape == (400, 256)
    assert np.isfinite(weights).all()
    assert weights.std() == pytest.approx(1 / 32, rel=0.02)
    assert abs(weights.mean()) < 1 / 32 / 20


def test_vocabulary_is_of_qwens_size_and_its_merges_are_sound():
    texts, types, merges = synthetic.vocabulary()
    assert len(texts) == len(set(texts)) == len(types) == 151_936
    assert texts[151_643:151_646] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert texts[151_657] == "<tool_call>"
    assert texts[151_667:151_669] == ["<think>", "</think>"]
    known = set(texts)
    assert len(merges) == len(set(merges)) == 151_387
    for merge in merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("qwen3-0.6b", 0.39), ("qwen3-8b", 5.0), ("qwen3-32b", 19.8)]
)
def test_sizes_are_those_of_the_real_files(tmp_path, name, gigabytes):
    synthetic.write(name, tmp_path / "model.gguf", header_only=True)
    header = check(tmp_path / "model.gguf")
    assert header.tensor_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert header.integer("block_count") == synthetic.SHAPES[name].layers


def stream(times: list[float]) -> Stream:
    made = Stream.__new__(Stream)
    made.times = times
    return made


def test_rate_counts_what_all_streams_showed_while_all_ran():
    # Role marks at 0, then ten tokens a second; the second stream starts and ends a second later.
    first = stream([0.0, *(1 + i / 10 for i in range(41))])
    second = stream([0.0, *(2 + i / 10 for i in range(41))])
    assert steady_rate([first, second], tokens=41) == pytest.approx(20.0, rel=0.02)


def test_rate_shares_tokens_among_chunks():
    # Twenty tokens came in ten chunks.
    assert steady_rate([stream([0.0, *map(float, range(10))])], tokens=20) == pytest.approx(2.0)


def test_ratio_is_the_median_of_pairs():
    row = Row(4, bare=[100.0, 50.0, 10.0], served=[96.0, 49.0, 1.0])
    assert row.ratio == pytest.approx(0.96)
    assert row.target == 0.95
