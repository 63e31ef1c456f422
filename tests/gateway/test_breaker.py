"""When a remote is asked, and when not."""

from __future__ import annotations

import pytest

from server.gateway.remote.breaker import Breaker, BreakerLimits, BreakerState
from tests.fakes import FakeClock

LIMITS = BreakerLimits(failures=3, pause=30.0, longest=100.0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def breaker(clock):
    return Breaker(LIMITS, clock)


def state(breaker) -> BreakerState:
    return breaker.state


def fail(breaker, times=1):
    for _ in range(times):
        breaker.begin().failed()


def test_it_opens_after_failures_in_a_row(breaker):
    fail(breaker, 2)
    breaker.begin().succeeded()
    fail(breaker, 2)
    assert state(breaker) is BreakerState.CLOSED
    assert breaker.wait() is None
    fail(breaker)
    assert (state(breaker), breaker.wait(), breaker.opened) == (BreakerState.OPEN, 30.0, 1)


def test_after_the_pause_one_may_try(breaker, clock):
    fail(breaker, 3)
    clock.advance(29.9)
    assert breaker.wait() == 1.0, "never told to come back at once"
    clock.advance(0.1)
    assert (state(breaker), breaker.wait()) == (BreakerState.HALF_OPEN, None)
    trial = breaker.begin()
    assert state(breaker) is BreakerState.OPEN, "the others wait for what becomes of it"
    trial.succeeded()
    assert state(breaker) is BreakerState.CLOSED
    fail(breaker, 2)
    assert state(breaker) is BreakerState.CLOSED, "counted from anew"


def test_a_try_that_speaks_closes_it_and_its_end_counts_as_anybodys(breaker, clock):
    fail(breaker, 3)
    clock.advance(30.0)
    trial = breaker.begin()
    trial.spoke()
    assert state(breaker) is BreakerState.CLOSED
    fail(breaker, 2)
    trial.spoke()
    trial.failed()
    assert state(breaker) is BreakerState.OPEN, "its words took back no failure of others"


def test_a_try_that_fails_doubles_the_pause_up_to_a_limit(breaker, clock):
    fail(breaker, 3)
    pauses = []
    for _ in range(4):
        clock.advance(breaker.wait())
        fail(breaker)
        pauses.append(breaker.wait())
    assert pauses == [60.0, 100.0, 100.0, 100.0]
    assert breaker.opened == 5
    clock.advance(100.0)
    breaker.begin().succeeded()
    fail(breaker, 3)
    assert breaker.wait() == 30.0


def test_a_try_that_nobody_knows_of_lets_the_next_one_try(breaker, clock):
    fail(breaker, 3)
    clock.advance(30.0)
    trial = breaker.begin()
    trial.abandoned()
    assert state(breaker) is BreakerState.HALF_OPEN
    trial.failed()
    assert state(breaker) is BreakerState.HALF_OPEN, "told once"


def test_what_was_under_way_when_it_opened_says_nothing_new(breaker, clock):
    late = [breaker.begin() for _ in range(2)]
    fail(breaker, 3)
    late[0].succeeded()
    late[1].failed()
    assert (state(breaker), breaker.wait(), breaker.opened) == (BreakerState.OPEN, 30.0, 1)


def test_a_probe_that_finds_it_alive_ends_the_pause(breaker):
    fail(breaker, 3)
    breaker.answered()
    assert state(breaker) is BreakerState.HALF_OPEN
    breaker.begin().succeeded()
    breaker.answered()
    assert state(breaker) is BreakerState.CLOSED


def test_probes_that_fail_count_and_begin_the_pause_anew(breaker, clock):
    for _ in range(3):
        breaker.missed()
    assert (state(breaker), breaker.opened) == (BreakerState.OPEN, 1)
    clock.advance(40.0)
    assert state(breaker) is BreakerState.HALF_OPEN
    breaker.missed()
    assert (state(breaker), breaker.wait(), breaker.opened) == (BreakerState.OPEN, 30.0, 1)
