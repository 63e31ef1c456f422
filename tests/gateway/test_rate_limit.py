"""Buckets of a key: what passes, when it passes again, what is given back."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.core.errors import InvalidRequest, RateLimited
from server.gateway.rate_limit import Grant, RateLimiter, RateLimits, duration, rate_headers
from tests.fakes import FakeClock

REPORTS = RateLimits(requests_per_minute=12, burst=3)


def limiter():
    clock = FakeClock()
    return RateLimiter(clock), clock


def refused(rate, key="k", limits=REPORTS):
    with pytest.raises(RateLimited) as caught:
        rate.take(key, limits)
    return caught.value


def test_the_reports_twelve_a_minute_with_a_burst_of_three():
    rate, clock = limiter()
    for _ in range(3):
        rate.take("k", REPORTS)
    assert refused(rate).retry_after == pytest.approx(5.0)
    clock.advance(4.999)
    assert refused(rate).retry_after == pytest.approx(0.001)
    clock.advance(0.001)
    rate.take("k", REPORTS)
    assert refused(rate).retry_after == pytest.approx(5.0)
    clock.advance(3600)
    for _ in range(3):
        rate.take("k", REPORTS)
    refused(rate)


def test_who_waits_as_long_as_told_passes():
    rate, clock = limiter()
    limits = RateLimits(requests_per_minute=7, burst=1, tokens_per_minute=701)
    for _ in range(200):
        grant = rate.take("k", limits)
        try:
            grant.reserve(97)
        except RateLimited as error:
            clock.advance(error.retry_after)
            grant.reserve(97)
        grant.release(97)
        clock.advance(refused(rate, limits=limits).retry_after)


def test_refusals_cost_nothing_and_keys_do_not_share():
    rate, clock = limiter()
    for _ in range(3):
        rate.take("k", REPORTS)
    for _ in range(100):
        refused(rate)
    rate.take("other", REPORTS)
    clock.advance(5)
    rate.take("k", REPORTS)


def test_a_request_refused_before_it_started_does_not_count():
    rate, _ = limiter()
    for _ in range(50):
        grant = rate.take("k", REPORTS)
        grant.release()
        grant.release()
    assert rate.windows("k", REPORTS)["requests"].remaining == 3


def test_tokens_are_reserved_and_what_was_not_used_comes_back():
    rate, clock = limiter()
    limits = RateLimits(tokens_per_minute=600)
    first = rate.take("k", limits)
    first.reserve(500)
    second = rate.take("k", limits)
    with pytest.raises(RateLimited, match="100 are left") as caught:
        second.reserve(200)
    assert caught.value.retry_after == pytest.approx(10.0)
    first.release(used=50)
    second.reserve(200)
    second.release(used=200)
    assert rate.windows("k", limits)["tokens"].remaining == 350
    clock.advance(10)
    assert rate.windows("k", limits)["tokens"].remaining == 450


def test_what_could_never_pass_is_the_callers_to_mend():
    rate, _ = limiter()
    grant = rate.take("k", RateLimits(tokens_per_minute=600))
    with pytest.raises(InvalidRequest, match="600 per minute") as caught:
        grant.reserve(601)
    assert caught.value.param == "max_tokens"


def test_requests_at_once():
    rate, _ = limiter()
    limits = RateLimits(max_concurrent=2)
    first, _second = rate.take("k", limits), rate.take("k", limits)
    assert refused(rate, limits=limits).retry_after == 1.0
    first.release(used=3)
    rate.take("k", limits)


def test_a_wall_clock_that_jumps_changes_nothing():
    class Jumping(FakeClock):
        def wall(self):
            raise AssertionError("limits must not read the wall clock")

    rate = RateLimiter(Jumping())
    for _ in range(3):
        rate.take("k", REPORTS)
    refused(rate)


def test_a_monotonic_clock_that_goes_back_takes_nothing():
    rate, clock = limiter()
    rate.take("k", REPORTS)
    clock.advance(-500)
    assert rate.windows("k", REPORTS)["requests"].remaining == 2
    clock.advance(500)
    assert rate.windows("k", REPORTS)["requests"].remaining == 2


def test_idle_keys_are_forgotten_and_busy_ones_are_not():
    rate, clock = limiter()
    held = rate.take("held", REPORTS)
    for number in range(5000):
        rate.take(f"k{number}", REPORTS).release(used=1)
        clock.advance(1)
    assert len(rate) <= 600
    held.release(used=1)


def test_new_limits_give_nothing_away():
    rate, _ = limiter()
    for _ in range(3):
        rate.take("k", REPORTS)
    more = RateLimits(requests_per_minute=60, burst=10)
    assert rate.windows("k", more)["requests"].remaining == 7
    less = RateLimits(requests_per_minute=12, burst=1)
    refused(rate, limits=less)


def test_headers():
    rate, _ = limiter()
    limits = RateLimits(requests_per_minute=12, burst=3, tokens_per_minute=6000)
    rate.take("k", limits).reserve(1200)
    assert rate_headers(rate.windows("k", limits)) == {
        "x-ratelimit-limit-requests": "12",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "5s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "4800",
        "x-ratelimit-reset-tokens": "12s",
    }
    assert rate_headers(rate.windows("free", RateLimits())) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.35, "350ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (59.2, "1m0s"),
        (360, "6m0s"),
        (3725, "1h2m5s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds, text):
    assert duration(seconds) == text


class Limiting(RuleBasedStateMachine):
    """Nothing is created, and nothing is lost, whatever is cancelled, refused or used."""

    @initialize(
        rpm=st.sampled_from([None, 6.0, 60.0]),
        burst=st.sampled_from([None, 1, 3]),
        tpm=st.sampled_from([None, 100, 600]),
        most=st.sampled_from([None, 1, 3]),
    )
    def begin(self, rpm, burst, tpm, most):
        self.clock = FakeClock()
        self.rate = RateLimiter(self.clock)
        self.limits = RateLimits(rpm, burst, tpm, most)
        self.open: dict[str, list[Grant]] = {"a": [], "b": []}
        self.began = self.clock.now
        self.passed = {"a": 0, "b": 0}
        self.used = {"a": 0, "b": 0}

    @rule(key=st.sampled_from("ab"), tokens=st.integers(1, 700))
    def request(self, key, tokens):
        before = self.rate.windows(key, self.limits)
        try:
            grant = self.rate.take(key, self.limits)
        except RateLimited as error:
            assert error.retry_after > 0  # noqa: PT017
            assert self.rate.windows(key, self.limits) == before
            return
        self.passed[key] += 1
        try:
            grant.reserve(tokens)
        except (RateLimited, InvalidRequest):
            grant.release()
            self.passed[key] -= 1
            return
        self.open[key].append(grant)

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data(), part=st.floats(0, 1), cancelled=st.booleans())
    def end(self, data, part, cancelled):
        key = data.draw(st.sampled_from([key for key, held in self.open.items() if held]))
        grant = self.open[key].pop(data.draw(st.integers(0, len(self.open[key]) - 1)))
        if cancelled:
            grant.release()
            self.passed[key] -= 1
        else:
            used = math.floor(grant.reserved * part)
            self.used[key] += used
            grant.release(used)
        grant.release(0)

    @rule(seconds=st.sampled_from([0.0, 0.1, 7.0, 90.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def nobody_gets_more_than_the_limits(self):
        if not hasattr(self, "rate"):
            return
        minutes = (self.clock.now - self.began) / 60
        for key, held in self.open.items():
            reserved = sum(grant.reserved for grant in held)
            if self.limits.tokens_per_minute is not None:
                most = self.limits.tokens_per_minute * (1 + minutes)
                assert self.used[key] + reserved <= most + 1e-6
            if self.limits.requests_per_minute is not None:
                most = self.limits.request_capacity + self.limits.requests_per_minute * minutes
                assert self.passed[key] <= most + 1e-6
            if self.limits.max_concurrent is not None:
                assert len(held) <= self.limits.max_concurrent
            for window in self.rate.windows(key, self.limits).values():
                assert window.remaining >= 0
                assert window.reset >= 0

    def teardown(self):
        if not hasattr(self, "rate"):
            return
        for held in self.open.values():
            for grant in held:
                grant.release(0)
        self.clock.advance(3600)
        for key in self.open:
            windows = self.rate.windows(key, self.limits)
            assert all(window.reset == 0 for window in windows.values())
            for _ in range(int(self.limits.request_capacity)):
                self.rate.take(key, self.limits).release(0)


TestLimiting = Limiting.TestCase
TestLimiting.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
