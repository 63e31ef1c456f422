"""The arithmetic of the benchmark."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bench.client import Outcome
from server.bench.statistics import Measured, figures, over_rounds, percentile, ratios


def outcome(*arrivals: float, kind: str = "", prompt: int = 10, cached: int | None = 4) -> Outcome:
    usage = {"prompt_tokens": prompt, "completion_tokens": len(arrivals)}
    return Outcome(
        status=200,
        kind=kind,
        arrivals=list(arrivals),
        total=arrivals[-1],
        usage=usage,
        cached=cached,
    )


def measured(*outcomes: Outcome, seconds: float = 10.0, **more) -> Measured:
    given = {"scenario": "s", "phase": "", "users": 1, "server": "a", "round": 0, **more}
    return Measured(seconds=seconds, outcomes=outcomes, **given)


@pytest.mark.parametrize(
    ("values", "part", "found"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        (list(map(float, range(1, 101))), 0.95, 95.0),
        (list(map(float, range(1, 101))), 0.99, 99.0),
        (list(map(float, range(1, 21))), 0.95, 19.0),
        ([1.0, 9.0], 0.95, 9.0),
        ([5.0], 0.01, 5.0),
    ],
)
def test_percentiles(values, part, found) -> None:
    assert percentile(values, part) == found


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_the_smallest_value_that_covers_its_part(values, part) -> None:
    found = percentile(values, part)

    assert found in values
    # As many as the part needs, but for the rounding of part × count.
    assert sum(value <= found for value in values) >= len(values) * part - 1e-9
    assert sum(value < found for value in values) < len(values) * part


def test_a_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 0.5))


def test_figures_of_a_row() -> None:
    refused = Outcome(status=503, code="queue_full")
    broken = Outcome(status=0, code="ConnectionResetError", arrivals=[9.0])
    found = figures(measured(outcome(1.0, 1.5, 3.5), outcome(2.0, 2.5), refused, broken))

    assert (found.first_p50, found.first_p95) == (1.0, 2.0)
    assert (found.gap_p50, found.gap_p99, found.gap_max) == (0.5, 2.0, 2.0)
    assert found.rate == pytest.approx(0.5), "five tokens of whole answers in ten seconds"
    assert (found.requests, found.errors, found.resets) == (4, 2, 1)
    assert found.codes == {"503 queue_full": 1, "reset ConnectionResetError": 1}
    assert (found.prompt_tokens, found.cached_tokens, found.computed) == (20, 8, 12)


def test_some_scenarios_count_some_kinds_only() -> None:
    row = measured(
        outcome(0.1, 5.1, kind="stream"),
        outcome(7.0, 7.1, kind="document"),
        first_of="document",
        gap_of="stream",
    )
    found = figures(row)

    assert (found.first_p50, found.gap_max) == (7.0, 5.0)
    assert found.tokens == 4


def test_a_server_that_does_not_tell_is_not_made_up() -> None:
    told, silent = outcome(1.0), outcome(1.0, cached=None)

    assert figures(measured(told, silent)).cached_tokens is None
    assert figures(measured(told, silent)).computed is None
    assert figures(measured(told, told)).computed == 12
    assert math.isnan(figures(measured()).first_p50)


def test_rounds_are_medians_and_sums() -> None:
    rounds = [figures(measured(outcome(first))) for first in (1.0, 2.0, 9.0)]

    assert over_rounds(rounds).first_p50 == 2.0
    assert over_rounds(rounds).requests == 3
    assert over_rounds(rounds).prompt_tokens == 30


def test_ratios_are_the_medians_of_what_each_round_shows() -> None:
    # The machine is ten times slower in the second round, for both.
    mine = [figures(measured(outcome(first))) for first in (1.0, 10.0, 3.0)]
    theirs = [figures(measured(outcome(first), seconds=20.0)) for first in (2.0, 20.0, 2.0)]
    found = ratios(mine, theirs)

    assert found["first_p95"] == 0.5
    assert found["rate"] == pytest.approx(2.0)
    assert found["computed"] == 1.0
    assert math.isnan(found["gap_p99"])


def test_ratios_leave_a_round_out_that_was_interrupted() -> None:
    mine = [figures(measured(outcome(1.0))), figures(measured(outcome(100.0)))]

    assert ratios(mine, [figures(measured(outcome(2.0)))])["first_p95"] == 0.5
