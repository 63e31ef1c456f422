"""The arithmetic of the benchmark."""

from __future__ import annotations

import pytest

from bench.client import Stream, steady_rate
from bench_engine import Row


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
