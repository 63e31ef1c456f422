"""The waiting line: its bound, its order, its advice, its end."""

from __future__ import annotations

import asyncio

import pytest

from server.core.errors import DeadlineUnreachable, Draining, QueueFull
from server.engine.preemption import PREEMPTIBLE
from server.gateway.drain_rate import DrainRate
from server.gateway.fair_queue import Priority
from server.gateway.ticket import Standing
from tests.gateway.lining import Desk

NORMAL, INTERACTIVE, BATCH = Priority.NORMAL, Priority.INTERACTIVE, Priority.BATCH


def flood(desk, count, refusal, key=""):
    """Ask until the line refuses."""
    for number in range(count):
        try:
            desk.ask(f"flood{number}", key)
        except QueueFull as error:
            assert refusal in error.message  # noqa: PT017
            return
    raise AssertionError("nobody was refused")


def test_the_line_holds_slots_and_queue_and_no_more():
    desk = Desk(slots=2, max_queue=3)
    for number in range(5):
        desk.ask(f"r{number}")
    with pytest.raises(QueueFull, match="3 of 3"):
        desk.enter("late")
    desk.finish()
    desk.ask("next")
    assert desk.line.outstanding == 5
    assert desk.line.counters == {"admitted": 6, "queue_full": 1, "released": 1}


def test_a_group_enters_whole_or_not_at_all():
    desk = Desk(slots=2, max_queue=3)
    desk.enter("a", places=3)
    with pytest.raises(QueueFull):
        desk.enter("b", places=3)
    assert desk.line.outstanding == 3
    assert desk.enter("c", places=2).places == 2


def test_release_counts_once_and_ends_everything():
    desk = Desk()
    ticket = desk.ask("a", places=3)
    ticket.release()
    ticket.release()
    ticket.note_started(2)
    ticket.note_ended(0)
    ticket.note_ended(1)
    whole = desk.ask("b", places=2)
    whole.note_ended(0)
    whole.note_ended(0)
    assert desk.lane.ended_places == 1
    whole.release()
    assert (desk.line.outstanding, desk.line.waiting) == (0, 0)
    assert desk.line.counters["released"] == 2
    assert ticket.outlook() is None


def test_the_engine_has_what_runs_and_as_many_more():
    desk = Desk(slots=2)
    for number in range(7):
        desk.ask(f"r{number}")
    assert len(desk.running) == 2
    assert [name for _, name, _ in desk.engine] == ["r2", "r3"]
    desk.finish()
    assert [name for _, name, _ in desk.engine] == ["r3", "r4"]


def test_a_slot_is_free_when_the_engine_says_so_whoever_still_reads():
    desk = Desk(slots=1, max_queue=1)
    slow = desk.ask("slow")
    desk.running.clear()
    slow.note_ended(0)
    assert desk.lane.outstanding == 1
    desk.ask("next")
    desk.ask("waits")
    assert desk.order == ["slow", "next"]
    assert desk.line.waiting == 1
    with pytest.raises(QueueFull):
        desk.enter("late")
    slow.release()
    assert desk.line.waiting == 1


def test_one_key_is_served_in_order_and_two_in_turn():
    desk = Desk(slots=1)
    for number in range(4):
        desk.ask(f"a{number}", "a")
    for number in range(3):
        desk.ask(f"b{number}", "b")
    while desk.running:
        desk.finish()
    assert desk.order == ["a0", "b0", "a1", "b1", "a2", "b2", "a3"]


def test_a_key_with_one_request_is_next_however_many_another_has_queued():
    desk = Desk(slots=4)
    for number in range(50):
        desk.ask(f"flood{number}", "flood")
    for _ in range(9):
        desk.finish()
    for _ in range(5):
        desk.ask("single", "single")
        assert desk.tickets["single"].outlook().position == 1
        desk.finish()
        assert desk.order[-1] == "single"
        desk.finish("single")
        desk.finish()


def test_who_was_away_has_saved_nothing_up():
    desk = Desk(slots=1)
    for number in range(40):
        desk.ask(f"a{number}", "a")
    for _ in range(20):
        desk.finish()
    for number in range(20):
        desk.ask(f"b{number}", "b")
    desk.order.clear()
    for _ in range(10):
        desk.finish()
    assert 4 <= sum(name.startswith("b") for name in desk.order) <= 6


def test_weights_share_what_is_served():
    desk = Desk(slots=1)
    for number in range(24):
        desk.ask(f"a{number}", "a", weight=2.0)
        desk.ask(f"b{number}", "b")
    for _ in range(24):
        desk.finish()
    served = [name[0] for name in desk.order]
    assert 15 <= served.count("a") <= 17


def test_costs_count_not_requests():
    desk = Desk(slots=1)
    for number in range(30):
        desk.ask(f"long{number}", "a", cost=300)
        desk.ask(f"short{number}", "b", cost=100)
    for _ in range(24):
        desk.finish()
    short = sum(name.startswith("short") for name in desk.order)
    assert 17 <= short <= 20


def test_better_classes_go_first_and_overtake_in_the_engine():
    desk = Desk(slots=1)
    desk.ask("runs")
    desk.ask("batch", "x", BATCH)
    desk.ask("normal", "y", NORMAL)
    desk.ask("quick", "z", INTERACTIVE)
    while desk.running:
        desk.finish()
    assert desk.order == ["runs", "quick", "normal", "batch"]


def test_a_class_that_waits_too_long_gets_one_start_in_four():
    desk = Desk(slots=1, max_queue=200, aging=15)
    for number in range(60):
        desk.ask(f"quick{number}", f"k{number % 7}", INTERACTIVE)
    for number in range(10):
        desk.ask(f"batch{number}", "night", BATCH)
    for _ in range(12):
        desk.finish()
    assert "batch0" not in desk.order
    for _ in range(32):
        desk.finish()
    late = desk.order[-28:]
    assert 6 <= sum(name.startswith("batch") for name in late) <= 8
    assert [name for name in desk.order if name.startswith("batch")] == [
        f"batch{number}" for number in range(sum(name.startswith("batch") for name in desk.order))
    ]


def test_reserved_slots_are_for_interactive_requests_only():
    desk = Desk(slots=3, interactive_slots=1)
    for number in range(5):
        desk.ask(f"normal{number}")
    desk.ask("many", places=4)
    assert len(desk.running) == 2
    desk.ask("quick", "k", INTERACTIVE)
    assert desk.order[-1] == "quick"
    desk.finish("quick")
    assert len(desk.running) == 2
    desk.finish()
    assert len(desk.running) == 2


def test_at_least_one_slot_is_for_everybody():
    desk = Desk(slots=1, interactive_slots=4)
    desk.ask("normal")
    assert desk.running == [("normal", 0)]


def test_cancelled_ones_cost_their_key_nothing():
    desk = Desk(slots=1)
    desk.ask("runs", "c")
    for number in range(20):
        desk.ask(f"a{number}", "a", cost=1000)
    for number in range(20):
        desk.cancel(f"a{number}")
    desk.ask("b", "b")
    desk.ask("a", "a")
    desk.ask("b2", "b")
    while desk.running:
        desk.finish()
    assert desk.order == ["runs", "b", "a", "b2"]


def test_what_was_estimated_too_high_is_given_back():
    desk = Desk(slots=1)
    first = desk.ask("a0", "a", cost=1000)
    desk.ask("b0", "b", cost=100)
    desk.ask("b1", "b", cost=100)
    desk.clock.advance(1)
    desk.running.clear()
    first.note_ended(0)
    first.release(cost=10)
    desk.seat()
    desk.ask("a1", "a", cost=100)
    while desk.running:
        desk.finish()
    assert desk.order.index("a1") < desk.order.index("b1")


def test_the_flood_of_a_key_leaves_places_for_others():
    desk = Desk(slots=2, max_queue=64)
    flood(desk, 80, "key has its share", "flood")
    assert 50 <= desk.line.waiting < 64
    desk.ask("single", "single")
    anonymous = Desk(slots=2, max_queue=64)
    flood(anonymous, 80, "64 of 64")


def test_the_flood_of_a_model_leaves_places_for_others():
    busy = Desk(slots=1, max_queue=64)
    other = Desk(slots=1, line=busy.line)
    flood(busy, 80, "model has its share")
    for number in range(4):
        other.ask(f"r{number}")
    assert other.order == ["r0"]
    other.finish()
    assert other.order == ["r0", "r1"]


def test_a_free_slot_is_not_kept_by_those_who_wait_for_another_model():
    busy = Desk(slots=1, max_queue=2)
    other = Desk(slots=1, line=busy.line)
    for number in range(3):
        busy.ask(f"r{number}")
    other.ask("here")
    assert (busy.line.outstanding, busy.line.waiting) == (4, 2)
    with pytest.raises(QueueFull, match="2 of 2"):
        other.ask("second")
    with pytest.raises(QueueFull):
        busy.ask("fourth")
    other.finish(seconds=4.0)
    assert other.lane.expected_wait(1) == pytest.approx(4.0)
    assert busy.lane.expected_wait(1) is None


def test_who_has_no_price_yet_holds_nobody_up():
    desk = Desk(slots=1)
    desk.enter("tokenizing")
    desk.ask("ready")
    assert desk.order == ["ready"]
    outlook = desk.tickets["tokenizing"].outlook()
    assert (outlook.position, outlook.waiting) == (1, 1)


def test_places_are_told_by_what_comes_before():
    desk = Desk(slots=1)
    for name in ("runs", "next", "then"):
        desk.ask(name, "a")
    desk.ask("quick", "b", INTERACTIVE)
    told = {name: desk.tickets[name].outlook() for name in desk.tickets}
    assert told["runs"] is None
    places = {name: one.position for name, one in told.items() if one is not None}
    assert places == {"quick": 1, "next": 2, "then": 3}
    assert {one.waiting for one in told.values() if one is not None} == {3}


def test_waits_are_estimated_by_what_those_ahead_cost():
    desk = Desk(slots=1)
    for number in range(4):
        desk.ask(f"m{number}", cost=100)
        desk.finish(seconds=2.0)
    desk.ask("runs", cost=100)
    desk.ask("long", cost=500)
    desk.ask("after", cost=100)
    assert desk.tickets["long"].outlook().seconds == pytest.approx(2.0, rel=0.1)
    assert desk.tickets["after"].outlook().seconds == pytest.approx(12.0, rel=0.1)


def test_without_a_measurement_the_advice_is_the_default():
    desk = Desk(slots=2, max_queue=3, unmeasured_retry=7.0)
    desk.ask("a", places=5)
    with pytest.raises(QueueFull) as caught:
        desk.enter("b")
    assert caught.value.retry_after == 7.0
    assert desk.lane.expected_wait(1) is None


@pytest.mark.parametrize(("seconds", "advice"), [(0.001, 1.0), (2.0, 6.0), (900.0, 120.0)])
def test_the_advice_is_the_time_in_which_the_line_drains_within_bounds(seconds, advice):
    desk = Desk(slots=1, max_queue=3)
    for number in range(4):
        desk.ask(f"m{number}")
        desk.finish(seconds=seconds)
    desk.ask("a", places=4)
    with pytest.raises(QueueFull) as caught:
        desk.enter("b")
    assert caught.value.retry_after == pytest.approx(advice, rel=0.1)


def test_idle_time_loads_and_cancelled_waiters_are_not_measured():
    desk = Desk(slots=1)
    desk.ask("a")
    desk.finish(seconds=3.0)
    desk.clock.advance(3600.0)
    desk.enter("loading")
    desk.clock.advance(600.0)
    desk.tickets["loading"].release()
    assert desk.lane.expected_wait(1) == pytest.approx(3.0)


def test_the_rate_forgets():
    rate = DrainRate(memory=60.0)
    assert rate.per_second is None
    for _ in range(100):
        rate.observe(1.0, 10)
    for _ in range(100):
        rate.observe(10.0, 1)
    assert rate.per_second == pytest.approx(0.1, rel=0.05)


def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate():
    desk = Desk(slots=1)
    for number in range(4):
        desk.ask(f"m{number}")
        desk.finish(seconds=2.0)
    now = desk.clock.now
    desk.ask("alone", deadline=now + 3.0)
    with pytest.raises(DeadlineUnreachable, match=r"about 4\.\d s") as caught:
        desk.enter("second", deadline=now + 3.0)
    assert caught.value.retry_after == pytest.approx(2.0, rel=0.1)
    desk.ask("third", deadline=now + 5.0)
    with pytest.raises(DeadlineUnreachable, match="passed"):
        desk.enter("gone", deadline=now - 1.0)
    assert desk.line.counters["deadline_unreachable"] == 2
    assert desk.line.outstanding == 2


def test_a_deadline_is_checked_again_when_the_price_is_known():
    desk = Desk(slots=1)
    for number in range(4):
        desk.ask(f"m{number}")
        desk.finish(seconds=2.0)
    desk.ask("runs")
    ticket = desk.enter("hurry", deadline=desk.clock.now + 5.0)
    desk.ask("long", "b", INTERACTIVE, cost=1000)
    with pytest.raises(DeadlineUnreachable):
        ticket.price([100.0], lambda _index, _rank: desk.order.append("wrong"))
    ticket.release()
    desk.finish()
    assert "wrong" not in desk.order
    assert desk.line.outstanding == 1


def test_draining_refuses_and_ends_with_the_last_ticket():
    async def main():
        desk = Desk()
        await desk.line.drained()
        ticket = desk.ask("a")
        desk.line.drain()
        with pytest.raises(Draining) as caught:
            desk.enter("b")
        assert caught.value.retry_after
        waiter = asyncio.create_task(desk.line.drained())
        await asyncio.sleep(0)
        assert not waiter.done()
        ticket.release()
        async with asyncio.timeout(5):
            await waiter

    asyncio.run(main())


def test_an_engine_that_answers_at_once_is_no_problem():
    desk = Desk(slots=2)
    ended = []

    def begin(name, ticket):
        def run(index, _rank):
            ticket.note_started(index)
            ticket.note_ended(index)
            ended.append(name)

        return run

    for number in range(100):
        ticket = desk.enter(f"r{number % 60}")
        ticket.price([1.0], begin(number, ticket))
        ticket.release()
    assert ended == list(range(100))
    assert desk.line.outstanding == 0


def test_memory_follows_the_line():
    desk = Desk(slots=1, max_queue=100)
    desk.ask("runs", "first")
    desk.ask("kept", "kept")
    for number in range(5000):
        desk.ask(f"r{number}", f"key{number}", weight=0.01 + number)
        desk.cancel(f"r{number}")
        del desk.tickets[f"r{number}"]
    classes = desk.lane._order._classes
    assert sum(len(one.flows) for one in classes.values()) < 100
    assert len(desk.line._unbegun) <= 2


def test_a_price_is_given_once_and_for_every_place():
    desk = Desk()
    ticket = desk.enter("a", places=2)
    with pytest.raises(ValueError, match="1 costs for 2 places"):
        ticket.price([1.0], lambda *_: None)
    ticket.price([1.0, 1.0], lambda *_: None)
    with pytest.raises(ValueError, match="twice"):
        ticket.price([1.0, 1.0], lambda *_: None)


def test_everybody_is_turned_away_only_where_no_model_has_a_place():
    busy = Desk(slots=1, max_queue=3)
    other = Desk(slots=1, line=busy.line)
    for desk, seconds in ((busy, 9.0), (other, 2.0)):
        desk.ask("measured")
        desk.finish(seconds=seconds)
    for number in range(4):
        busy.ask(f"r{number}")
    busy.line.turn_away(Standing())
    other.ask("last slot")
    with pytest.raises(QueueFull, match="3 of 3") as caught:
        busy.line.turn_away(Standing())
    assert caught.value.retry_after == other.lane.retry_after() < busy.lane.retry_after()
    assert busy.line.counters["queue_full"] == 1
    assert busy.line.outstanding == 5


def test_what_is_given_back_lets_nobody_overtake_the_older_requests_of_its_key():
    desk = Desk(slots=1)
    for number in range(10):
        desk.ask(f"old{number}", "a", cost=1000)
    for number in range(5):
        desk.clock.advance(1)
        desk.running.clear()
        desk.tickets[f"old{number}"].note_ended(0)
        desk.tickets[f"old{number}"].release(cost=10)
        desk.seat()
    for number in range(5):
        desk.ask(f"new{number}", "a", cost=1000)
    while desk.running:
        desk.finish()
    assert desk.order == [f"old{n}" for n in range(10)] + [f"new{n}" for n in range(5)]


def test_who_gives_up_lets_nobody_overtake_the_older_requests_of_its_key():
    desk = Desk(slots=1)
    for number in range(10):
        desk.ask(f"old{number}", "a")
    for number in range(2, 8):
        desk.cancel(f"old{number}")
    for number in range(3):
        desk.ask(f"new{number}", "a")
    while desk.running:
        desk.finish()
    assert desk.order == ["old0", "old1", "old8", "old9", "new0", "new1", "new2"]


def test_who_asks_for_much_and_uses_little_is_served_by_what_it_used():
    """As often as the other key, whose estimates are right; those that wait already count too."""
    desk = Desk(slots=1, max_queue=200)
    for number in range(60):
        desk.ask(f"wide{number}", "wide", cost=2000)
        desk.ask(f"tight{number}", "tight", cost=100)
    for _ in range(70):
        desk.clock.advance(1)
        name, index = desk.running.pop()
        desk.tickets[name].note_ended(index)
        desk.tickets[name].release(cost=100)
        desk.seat()
    # The engine holds one of them ahead, by the rank of its estimate, for twenty turns.
    assert 24 <= sum(name.startswith("wide") for name in desk.order[-50:]) <= 26


def measured(seconds=2.0, cost=100.0):
    desk = Desk(slots=1)
    for number in range(4):
        desk.ask(f"m{number}", cost=cost)
        desk.finish(seconds=seconds)
    return desk


def test_a_deadline_is_held_against_those_that_come_before_not_against_the_whole_line():
    desk = measured()
    for number in range(20):
        desk.ask(f"flood{number}", "flood")
    ticket = desk.ask("single", "single", deadline=desk.clock.now + 10.0)
    assert ticket.outlook().position == 1
    with pytest.raises(DeadlineUnreachable):
        desk.enter("behind", "flood", deadline=desk.clock.now + 10.0)


def test_short_work_makes_a_deadline_that_usual_work_would_miss():
    desk = measured(seconds=60.0, cost=1000)
    soon = desk.clock.now + 5.0
    with pytest.raises(DeadlineUnreachable, match="about 60"):
        desk.lane.admit(1, deadline=soon)
    with pytest.raises(DeadlineUnreachable, match="about 60"):
        desk.lane.admit(1, deadline=soon, cost=2000.0)  # at most so much; it may end sooner
    desk.tickets["short"] = ticket = desk.lane.admit(1, deadline=soon, cost=10.0)
    ticket.price([10.0], lambda _index, rank: desk.engine.append((rank, "short", 0)))
    desk.seat()
    assert desk.order[-1] == "short"
    desk.finish()
    with pytest.raises(DeadlineUnreachable):
        desk.ask("usual", deadline=soon, cost=1000)


def test_for_a_better_class_slots_of_batch_work_are_free():
    desk = measured(seconds=60.0)
    soon = desk.clock.now + 70.0
    desk.ask("job", "b", BATCH)
    with pytest.raises(DeadlineUnreachable):
        desk.enter("another", "b", BATCH, deadline=soon)
    desk.ask("person", "a", NORMAL, deadline=soon)
    desk.ask("quick", "c", INTERACTIVE, deadline=soon)
    with pytest.raises(DeadlineUnreachable):
        desk.enter("late", "a", NORMAL, deadline=soon)


def test_the_engine_gets_a_better_class_however_much_batch_work_it_has():
    desk = Desk(slots=2)
    for number in range(9):
        desk.ask(f"job{number}", f"b{number}", BATCH)
    assert len(desk.running) == len(desk.engine) == 2
    desk.ask("person", "a", NORMAL)
    assert min(desk.engine)[1] == "person"
    desk.ask("quick", "a", INTERACTIVE)
    assert min(desk.engine)[1] == "quick"
    assert PREEMPTIBLE == BATCH
    assert all(
        (rank[0] < PREEMPTIBLE) == (name in {"person", "quick"}) for rank, name, _ in desk.engine
    )


def test_those_who_wait_are_counted_by_class():
    desk = Desk(slots=1)
    for number in range(4):
        desk.ask(f"n{number}")
    desk.ask("quick", "a", INTERACTIVE)
    for number in range(2):
        desk.ask(f"b{number}", "b", BATCH)
    counted = desk.lane.queued_by_class()
    assert counted == {INTERACTIVE: 1, NORMAL: 3, BATCH: 2}
    assert sum(counted.values()) == desk.lane.queued
