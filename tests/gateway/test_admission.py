"""The waiting line: its bound, its advice, its end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import Draining, QueueFull
from server.gateway.admission import AdmissionController, AdmissionLimits, DrainRate, Ticket
from tests.fakes import FakeClock


def one_lane(slots=2, max_queue=3, **limits):
    clock = FakeClock()
    line = AdmissionController(AdmissionLimits(max_queue, **limits), clock)
    return line.open_lane(slots), line, clock


def test_the_line_holds_slots_and_queue_and_no_more():
    lane, line, _ = one_lane()
    tickets = [lane.admit() for _ in range(5)]
    with pytest.raises(QueueFull, match="3 of 3"):
        lane.admit()
    tickets[0].release()
    lane.admit()
    assert line.outstanding == 5
    assert line.counters == {"admitted": 6, "queue_full": 1, "released": 1}


def test_a_group_enters_whole_or_not_at_all():
    lane, line, _ = one_lane()
    lane.admit(3)
    with pytest.raises(QueueFull):
        lane.admit(3)
    assert line.outstanding == 3
    assert lane.admit(2).places == 2


def test_release_counts_once():
    lane, line, _ = one_lane()
    ticket = lane.admit(2)
    ticket.release()
    ticket.release()
    assert line.outstanding == 0
    assert line.counters["released"] == 1


def test_without_a_measurement_the_advice_is_the_default():
    lane, _, _ = one_lane(unmeasured_retry=7.0)
    lane.admit(5)
    with pytest.raises(QueueFull) as caught:
        lane.admit()
    assert caught.value.retry_after == 7.0
    assert lane.expected_wait(1) is None


def test_the_advice_is_the_time_in_which_the_line_drains():
    lane, _, clock = one_lane()
    for _ in range(4):
        ticket = lane.admit()
        clock.advance(2.0)
        ticket.release()
    lane.admit(5)
    assert lane.expected_wait(1) == pytest.approx(2.0, rel=0.1)
    with pytest.raises(QueueFull) as caught:
        lane.admit()
    assert caught.value.retry_after == pytest.approx(6.0, rel=0.1)


@pytest.mark.parametrize(("seconds", "advice"), [(0.001, 1.0), (900.0, 120.0)])
def test_the_advice_is_at_least_a_second_and_at_most_two_minutes(seconds, advice):
    lane, _, clock = one_lane()
    ticket = lane.admit()
    clock.advance(seconds)
    ticket.release()
    lane.admit(5)
    assert lane.retry_after() == advice


def test_idle_time_and_aborted_waiters_are_not_measured():
    lane, _, clock = one_lane()
    ticket = lane.admit()
    clock.advance(3.0)
    ticket.release()
    clock.advance(3600.0)
    waiter = lane.admit()
    waiter.release(served=False)
    assert lane.expected_wait(1) == pytest.approx(3.0)


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
        lane, line, _ = one_lane()
        await line.drained()
        ticket = lane.admit()
        line.drain()
        with pytest.raises(Draining) as caught:
            lane.admit()
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
    lane, line, clock = one_lane(slots=2, max_queue=4)
    held: list[Ticket] = []
    for places, release in steps:
        clock.advance(0.5)
        if release and held:
            held.pop(places % len(held)).release()
        else:
            try:
                held.append(lane.admit(places))
            except QueueFull as error:
                assert 1 <= (error.retry_after or 0) <= 120  # noqa: PT017
                assert line.outstanding + places > lane.capacity
        assert line.outstanding == sum(ticket.places for ticket in held) <= lane.capacity
    for ticket in held:
        ticket.release()
    assert line.outstanding == 0


def test_a_free_slot_is_not_kept_by_those_who_wait_for_another_model():
    busy, line, clock = one_lane(slots=1, max_queue=2)
    other = line.open_lane(1)
    for _ in range(3):
        busy.admit()
    ticket = other.admit()
    assert (line.outstanding, line.waiting) == (4, 2)
    with pytest.raises(QueueFull, match="2 of 2"):
        other.admit()
    with pytest.raises(QueueFull):
        busy.admit()
    clock.advance(4.0)
    ticket.release()
    assert other.expected_wait(1) == pytest.approx(4.0)
    assert busy.expected_wait(1) is None


def test_the_time_of_a_load_does_not_slow_the_rate():
    lane, _, clock = one_lane()
    lane.pause()
    ticket = lane.admit()
    clock.advance(50.0)
    lane.admit().release(served=False)  # who comes and goes meanwhile makes no difference
    clock.advance(50.0)
    lane.resume()
    clock.advance(2.0)
    ticket.release()
    assert lane.expected_wait(1) == pytest.approx(2.0)
