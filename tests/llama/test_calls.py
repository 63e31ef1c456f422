"""Which rows are computed together: what deep contexts would cost shallow ones in the split layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import combinations
from operator import attrgetter
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from server.engine.plan import CallShape, Rows
from server.llama.calls import (
    PADDING,
    PASS_CELLS,
    ROWS_OF_ONE_READ,
    by_depth,
    grouping,
    one_by_one,
    passes,
    together,
)
from server.llama.params import LlamaParams

CPU = CallShape(chunk_rows=64, one_pass=False)
SPLIT = partial(passes, n_ubatch=512, unified=False)


def stream(slot: int, depth: int) -> Rows:
    return Rows(slot, depth - 1, [1], outputs=1)


def slots(calls: list[list[Rows]]) -> list[list[int]]:
    return [[one.slot for one in call] for call in calls]


@pytest.mark.parametrize(
    ("fields", "calls", "expected"),
    [
        ({"layout": "split", "flash_attention": "off"}, CPU, by_depth),
        ({"layout": "split", "flash_attention": "on"}, CPU, together),
        ({"layout": "unified", "flash_attention": "off"}, CPU, together),
        ({"layout": "split", "flash_attention": "off"}, CallShape(one_pass=False), together),
        ({"n_ubatch": 1}, CPU, one_by_one),
    ],
)
def test_only_the_split_layout_without_flash_attention_on_a_cpu_reads_for_all(
    fields, calls, expected
):
    params = replace(LlamaParams(Path("any.gguf")), **fields)
    found = grouping(params, calls)
    assert getattr(found, "func", found) is expected


def test_a_deep_context_is_computed_by_itself():
    rows = [stream(0, 100), stream(1, 3300), stream(2, 120), stream(3, 90)]
    assert slots(by_depth(rows, SPLIT)) == [[0, 2, 3], [1]]


def test_contexts_about_as_deep_are_computed_together():
    rows = [stream(slot, depth) for slot, depth in enumerate([400, 620, 480, 610])]
    assert slots(by_depth(rows, SPLIT)) == [[0, 1, 2, 3]]
    questions = [Rows(slot, 1400 + slot, [1] * 30, outputs=1) for slot in range(4)]
    assert slots(by_depth(questions, SPLIT)) == [[0, 1, 2, 3]]


def read(calls: list[list[Rows]]) -> float:
    """Cells that calls read, with their passes."""
    cells = 0.0
    for call in calls:
        deepest = max(one.start + len(one.tokens) for one in call)
        weight = sum(max(1.0, len(one.tokens) / ROWS_OF_ONE_READ) for one in call)
        cells += (
            PASS_CELLS * SPLIT(sorted(call, key=attrgetter("slot")))
            + weight * -(-deepest // PADDING) * PADDING
        )
    return cells


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 100)), min_size=1, max_size=6),
)
def test_no_other_cuts_of_the_depths_read_less(shapes):
    rows = [Rows(slot, start, [1] * count, 0) for slot, (start, count) in enumerate(shapes)]
    calls = by_depth(rows, SPLIT)
    assert sorted(slot for call in slots(calls) for slot in call) == list(range(len(rows)))
    assert all(call == sorted(call) for call in slots(calls)), "slots ascend"
    order = sorted(rows, key=lambda one: one.start + len(one.tokens))
    for count in range(len(order)):
        for cuts in combinations(range(1, len(order)), count):
            ends = [0, *cuts, len(order)]
            other = [order[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]
            assert read(calls) <= read(other) + 1e-6


SPLITS = Path(__file__).with_name("splits.py")
SHAPES = [
    [(0, 1), (1, 1), (2, 1), (3, 1)],
    [(0, 1), (1, 1), (3, 1)],
    [(0, 1), (1, 30), (2, 1), (3, 1)],
    [(0, 30), (1, 28), (2, 31), (3, 30)],
    [(2, 100)],
    [(0, 40), (1, 40), (2, 40)],
    [(0, 3), (2, 5), (3, 2)],
]


@pytest.mark.native
@pytest.mark.parametrize("unified", [True, False])
def test_passes_are_the_graphs_that_llama_cpp_computes(models, unified):
    """It prints each with LLAMA_BATCH_DEBUG, which it reads when a context is made: hence another process."""
    given_shapes = json.dumps({"unified": unified, "n_ubatch": 32, "shapes": SHAPES})
    ran = subprocess.run(
        [sys.executable, SPLITS, models.path(None), given_shapes],
        env=os.environ | {"LLAMA_BATCH_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    planned = [[Rows(slot, 0, [1] * count, 0) for slot, count in shape] for shape in SHAPES]
    counted = [passes(rows, 32, unified=unified) for rows in planned]
    assert json.loads(ran.stdout) == counted


def test_of_streams_alone_no_call_is_simulated():
    """As many as slots, at as many depths: the step would wait for that."""
    rows = [stream(slot, 1 + slot * 977 % 4000) for slot in range(64)]

    def simulated(_rows: list[Rows]) -> int:
        raise AssertionError("simulated")

    calls = by_depth(rows, simulated)
    assert sorted(slot for call in slots(calls) for slot in call) == list(range(64))
    assert calls == by_depth([*rows], SPLIT)
