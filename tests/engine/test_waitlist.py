"""Ranks decide who is next; nobody is overtaken without end."""

from __future__ import annotations

from server.core.events import Started
from server.engine.detokenizer import Detokenizer
from server.engine.sequence import Sequence
from server.engine.waitlist import MOST_OVERTAKES, Waitlist
from tests.factories import ByteTokenizer, LoopHarness, make_limits, make_request


def sequence(name, rank=(0, 0.0, 0)):
    request = make_request("x", 4, request_id=name, rank=rank)
    return Sequence(request, Detokenizer(ByteTokenizer.pieces, ()), 0.0)


def taken(waitlist, fits=lambda one: True, depth=4):
    found = waitlist.take(lambda one: True if fits(one) else None, depth)
    return None if found is None else found[0].request.request_id


def test_the_least_rank_is_next_and_equal_ones_keep_their_order():
    waitlist = Waitlist()
    for name, rank in [("a", (1, 5.0, 1)), ("b", (1, 2.0, 2)), ("c", (0, 9.0, 3))]:
        waitlist.add(sequence(name, rank))
    for name in ("d", "e"):
        waitlist.add(sequence(name, (1, 2.0, 2)))
    assert [taken(waitlist) for _ in range(6)] == ["c", "b", "d", "e", "a", None]


def test_what_does_not_fit_lets_later_ones_pass_but_not_for_ever():
    waitlist = Waitlist()
    waitlist.add(sequence("big"))
    passed = 0
    for number in range(MOST_OVERTAKES + 5):
        waitlist.add(sequence(f"small{number}"))
        passed += taken(waitlist, lambda one: one.request.request_id != "big") is not None
    assert passed == MOST_OVERTAKES
    assert taken(waitlist) == "big"


def test_a_poor_rank_is_overtaken_so_often_and_no_more():
    waitlist = Waitlist()
    waitlist.add(sequence("batch", (2, 0.0, 0)))
    started = []
    for number in range(MOST_OVERTAKES + 2):
        waitlist.add(sequence(f"quick{number}", (0, 0.0, number)))
        started.append(taken(waitlist))
    assert started.index("batch") == MOST_OVERTAKES


def test_a_freed_slot_goes_to_the_best_rank_within_the_same_step():
    harness = LoopHarness(make_limits(slots=1))
    first = harness.submit(make_request("one", 2))
    harness.step()
    later = harness.submit(make_request("two", 2, rank=(1, 1.0, 1)))
    better = harness.submit(make_request("six", 2, rank=(0, 9.0, 2)))
    while first not in harness.events or len(harness.events[first]) < 4:
        harness.step()
    harness.step()
    assert isinstance(harness.events[better][0], Started)
    assert later not in harness.events
    harness.run()
    assert isinstance(harness.events[later][0], Started)


def test_a_long_request_without_cells_keeps_no_slot_idle():
    harness = LoopHarness(make_limits(slots=3, n_ctx=64, kv_cells=100, max_rows=64))
    harness.submit(make_request("x" * 40, 20))
    long = harness.submit(make_request("y" * 40, 20))
    short = harness.submit(make_request("z", 8))
    harness.step()
    assert short in harness.events
    assert long not in harness.events
    harness.run()
    assert isinstance(harness.events[long][0], Started)
