"""The waiting line: its bound, its advice, its end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import Draining, QueueFull
from server.gateway.admission import AdmissionController, AdmissionLimits, DrainRate, Ticket
from tests.fakes import FakeClock


def controller(slots=2, max_queue=3, **limits):
    clock = FakeClock()
    return AdmissionController(AdmissionLimits(slots, max_queue, **limits), clock), clock


def test_the_line_holds_slots_and_queue_and_no_more():
    line, _ = controller()
    tickets = [line.admit() for _ in range(5)]
    with pytest.raises(QueueFull, match="5 of 5"):
        line.admit()
    tickets[0].release()
    line.admit()
    assert line.outstanding == 5
    assert line.counters == {"admitted": 6, "queue_full": 1, "released": 1}


def test_a_group_enters_whole_or_not_at_all():
    line, _ = controller()
    line.admit(3)
    with pytest.raises(QueueFull):
        line.admit(3)
    assert line.outstanding == 3
    assert line.admit(2).places == 2


def test_release_counts_once():
    line, _ = controller()
    ticket = line.admit(2)
    ticket.release()
    ticket.release()
    assert line.outstanding == 0
    assert line.counters["released"] == 1


def test_without_a_measurement_the_advice_is_the_default():
    line, _ = controller(unmeasured_retry=7.0)
    line.admit(5)
    with pytest.raises(QueueFull) as caught:
        line.admit()
    assert caught.value.retry_after == 7.0
    assert line.expected_wait(1) is None


def test_the_advice_is_the_time_in_which_the_line_drains():
    line, clock = controller()
    for _ in range(4):
        ticket = line.admit()
        clock.advance(2.0)
        ticket.release()
    line.admit(5)
    assert line.expected_wait(1) == pytest.approx(2.0, rel=0.1)
    with pytest.raises(QueueFull) as caught:
        line.admit()
    assert caught.value.retry_after == pytest.approx(6.0, rel=0.1)


@pytest.mark.parametrize(("seconds", "advice"), [(0.001, 1.0), (900.0, 120.0)])
def test_the_advice_is_at_least_a_second_and_at_most_two_minutes(seconds, advice):
    line, clock = controller()
    ticket = line.admit()
    clock.advance(seconds)
    ticket.release()
    line.admit(5)
    assert line.retry_after() == advice


def test_idle_time_and_aborted_waiters_are_not_measured():
    line, clock = controller()
    ticket = line.admit()
    clock.advance(3.0)
    ticket.release()
    clock.advance(3600.0)
    waiter = line.admit()
    waiter.release(served=False)
    assert line.expected_wait(1) == pytest.approx(3.0)


def test_the_rate_forgets():
    rate = DrainRate(memory=60.0)
    assert rate.per_second is None
    for _ in range(100):
        rate.observe(1.0, 10)
    for _ in range(100):
        rate.observe(10.0, 1)
    assert rate.per_second == pytest.approx(0.1, rel=0.05)


def test_draining_refuses_and_ends_with_the_last_ticket():
    async def main():
        line, _ = controller()
        await line.drained()
        ticket = line.admit()
        line.drain()
        with pytest.raises(Draining) as caught:
            line.admit()
        assert caught.value.retry_after
        waiter = asyncio.create_task(line.drained())
        await asyncio.sleep(0)
        assert not waiter.done()
        ticket.release()
        async with asyncio.timeout(5):
            await waiter

    asyncio.run(main())


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=60))
def test_places_never_exceed_the_bound_nor_get_lost(steps):
    line, clock = controller(slots=2, max_queue=4)
    held: list[Ticket] = []
    for places, release in steps:
        clock.advance(0.5)
        if release and held:
            held.pop(places % len(held)).release()
        else:
            try:
                held.append(line.admit(places))
            except QueueFull as error:
                assert 1 <= (error.retry_after or 0) <= 120  # noqa: PT017
                assert line.outstanding + places > line.capacity
        assert line.outstanding == sum(ticket.places for ticket in held) <= line.capacity
    for ticket in held:
        ticket.release()
    assert line.outstanding == 0
