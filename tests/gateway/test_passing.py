"""Who passes whom among the requests of one key, and for how long."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from server.gateway.fair_queue import FairQueue, Priority, Turn
from tests.gateway.lining import Desk

DOCUMENT = 5.0
"""Seconds of prefill: it yields for six times as long."""


def served(desk: Desk) -> list[str]:
    """Let all who wait have their turns."""
    while desk.running:
        desk.finish()
    return desk.order


def busy(slots: int = 1, **limits: float) -> Desk:
    """A desk whose slots, and whose engine's places ahead, are taken."""
    desk = Desk(slots, 500, **limits)
    for number in range(2 * slots):
        desk.ask(f"before{number}")
    return desk


def test_a_short_request_passes_a_document_that_came_before_it():
    desk = busy()
    desk.ask("document", prefill=DOCUMENT)
    desk.clock.advance(3.0)
    desk.ask("short", prefill=0.1)
    assert served(desk)[2:] == ["short", "document"]


def test_alike_requests_are_served_in_order_of_arrival():
    desk = busy()
    for number in range(20):
        desk.ask(f"r{number}", prefill=0.3)
        desk.clock.advance(0.01)
    assert served(desk)[2:] == [f"r{number}" for number in range(20)]


def test_nobody_passes_where_the_order_is_that_of_arrival():
    desk = busy(passing=0.0)
    desk.ask("document", prefill=DOCUMENT)
    desk.ask("short", prefill=0.1)
    assert served(desk)[2:] == ["document", "short"]


def test_a_document_is_not_passed_by_those_who_come_when_it_has_yielded_enough():
    desk = busy()
    desk.ask("document", prefill=DOCUMENT)
    desk.clock.advance(6 * DOCUMENT - 1)
    desk.ask("in time", prefill=0.1)
    desk.clock.advance(2)
    desk.ask("late", prefill=0.1)
    assert served(desk)[2:] == ["in time", "document", "late"]


def test_however_long_its_prefill_nobody_is_passed_without_end():
    """A short one comes with every turn, for ever; the bound is the same for everybody."""
    desk = busy(passing=20.0)
    desk.ask("book", prefill=10_000.0)
    came = desk.clock.now
    for number in range(100):
        desk.ask(f"s{number}", prefill=0.1)
        desk.finish(seconds=1.0)
        if "book" in desk.order:
            break
    assert 19 <= desk.clock.now - came <= 20 + 5  # and those who stood before it by then


def test_a_price_that_knows_of_a_cached_prompt_passes():
    desk = busy()
    desk.ask("agent, cold", prefill=3.5)
    desk.ask("agent, warm", prefill=0.06)
    assert served(desk)[2:] == ["agent, warm", "agent, cold"]


def test_who_yields_does_not_go_to_the_engine_before_a_slot_is_free():
    """There it would have its rank, and those to whom it yields come a moment later."""
    desk = Desk(2)
    for number in range(2):
        desk.ask(f"runs{number}")
    for number in range(2):
        desk.ask(f"document{number}", prefill=DOCUMENT)
    assert not desk.engine
    for number in range(3):
        desk.ask(f"short{number}", prefill=0.1)
    assert served(desk)[2:] == ["short0", "short1", "short2", "document0", "document1"]


def test_who_has_yielded_goes_to_the_engine_ahead():
    desk = Desk(1)
    desk.ask("runs")
    desk.ask("document", prefill=DOCUMENT)
    desk.clock.advance(6 * DOCUMENT + 1)
    desk.ask("short", prefill=0.1)
    assert [name for _, name, _ in desk.engine] == ["document"]


def test_an_idle_slot_is_given_to_whoever_is_there():
    desk = Desk(1)
    desk.ask("document", prefill=DOCUMENT)
    assert desk.order == ["document"]


def test_who_yields_displaces_batch_work_all_the_same():
    desk = Desk(1)
    desk.ask("batch", "", Priority.BATCH)
    desk.ask("document", prefill=DOCUMENT)
    assert [name for _, name, _ in desk.engine] == ["document"]


def test_one_with_a_deadline_yields_for_a_quarter_of_its_time():
    desk = Desk(1)
    desk.ask("measured")
    desk.finish(seconds=2.0)
    for number in range(2):
        desk.ask(f"before{number}")
    desk.ask("hurried", prefill=DOCUMENT, deadline=desk.clock.now + 40.0)
    desk.clock.advance(9)
    desk.ask("in time", prefill=0.1)
    desk.clock.advance(2)
    desk.ask("late", prefill=0.1)
    assert served(desk)[3:] == ["in time", "hurried", "late"]


def test_the_place_that_is_told_is_the_one_that_is_kept():
    desk = busy()
    document = desk.ask("document", prefill=DOCUMENT)
    told = [document.outlook()]
    for number in range(3):
        desk.ask(f"s{number}", prefill=0.1)
        told.append(document.outlook())
    # Two that came before it: one runs, one waits in the engine.
    assert [one.position for one in told if one is not None] == [2, 3, 4, 5]
    places = {
        name: place.position
        for name, ticket in desk.tickets.items()
        if (place := ticket.outlook()) is not None
    }
    assert sorted(places, key=places.__getitem__) == served(desk)[1:]


def test_a_deadline_counts_those_that_would_be_passed_as_behind():
    desk = Desk(1)
    for number in range(4):
        desk.ask(f"m{number}")
        desk.finish(seconds=2.0)
    desk.ask("runs")
    desk.ask("ahead")
    for number in range(10):
        desk.ask(f"document{number}", prefill=DOCUMENT)
    # Twelve before it would take 24 s; short work stands behind two of them.
    desk.lane.admit(1, deadline=desk.clock.now + 12.0, cost=100.0)


TURNS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.floats(0, 50).map(lambda x: round(x, 1)),
        st.floats(0, 9).map(lambda x: round(x, 1)),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


def run(turns, bound: float) -> list[Turn]:
    """Push turns at their times and take one after some of them; return them as they were taken."""
    queue: FairQueue[Turn] = FairQueue(aging=1e9)
    now, taken, numbers = 0.0, [], itertools.count()

    def take() -> None:
        found = queue.head(now, tuple(Priority))
        if found is not None:
            queue.take(found[0], aged=False)
            queue.started(found[0])
            queue.ended(found[0])
            taken.append(found[0])

    for flow, pause, yields, takes in turns:
        now += pause
        queue.push(Turn(flow, 1.0, Priority.NORMAL, 10.0, next(numbers), now, min(yields, bound)))
        if takes:
            take()
    while len(queue):
        take()
    return taken


@given(TURNS, st.sampled_from([0.0, 3.0, 20.0]))
def test_no_turn_is_passed_by_one_of_its_flow_that_came_later_than_the_bound(turns, bound):
    taken = run(turns, bound)
    for index, turn in enumerate(taken):
        for before in taken[:index]:
            if before.flow == turn.flow:
                assert before.arrived <= turn.arrived + bound
                assert before.arrived <= turn.arrived + turn.yields


@given(TURNS)
def test_who_passes_within_a_key_changes_no_other_keys_turns(turns):
    """The keys take turns as they would in order of arrival; who is first of equals may differ."""
    passing = [turn.flow for turn in run(turns, 20.0)]
    arriving = [turn.flow for turn in run(turns, 0.0)]
    for count in range(len(turns) + 1):
        assert abs(passing[:count].count("a") - arriving[:count].count("a")) <= 1
