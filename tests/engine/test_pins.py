"""Prompts that are computed ahead and stay, over the scripted backend."""

from dataclasses import replace

import pytest

from server.core.events import Finished
from server.engine.host_memory import HostBudget
from server.engine.pins import Pin
from tests.factories import (
    MODEL_INFO,
    LoopHarness,
    answer_of,
    make_limits,
    make_request,
    state_size,
)

LIMITS = make_limits(slots=2, n_ctx=512, max_rows=128)
FIRST = "You are the first agent, and what you are told is long. " * 4
SECOND = "Somebody else you are. " * 12
BUDGET = 4 * state_size(500)


def pin(text, name="docs"):
    return Pin(name, list(text.encode()))


def harness_of(*texts, host=BUDGET, limits=LIMITS, layout="unified", pins=None):
    pins = [pin(text) for text in texts] if pins is None else pins
    made = LoopHarness(limits, host=HostBudget(host), pins=lambda: pins)
    if layout == "split":
        made.backend.info = replace(MODEL_INFO, shares_cells=False)
        if made.loop.memory is not None:
            made.loop.memory.close()
        made.loop.load()
    return made


def asked(text, own="and a question of mine", max_tokens=5, **fields):
    fields.setdefault("public_tokens", len(text))
    return make_request(text + own, max_tokens, **fields)


def usage(harness, request):
    last = harness.events[request.request_id][-1]
    assert isinstance(last, Finished)
    return last.usage


def usage_of(harness, request):
    last = harness.events.get(request.request_id, [None])[-1]
    return last.usage if isinstance(last, Finished) else None


def said(harness, request):
    events = harness.events[request.request_id]
    return [token for event in events for token in getattr(event, "token_ids", ())]


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_they_are_computed_before_anybody_asks_and_are_everybodys(layout):
    harness = harness_of(FIRST, SECOND, layout=layout)
    harness.run()
    pins = harness.scheduler.pins
    assert (pins.wanted, pins.kept) == (2, 2)
    assert harness.scheduler.counters["prefill_rows"] == len(FIRST) + len(SECOND)
    for text, scope in ((FIRST, "me"), (SECOND, "you"), (FIRST, "them")):
        request = asked(text, cache_scope=scope)
        harness.submit(request)
        harness.run()
        assert usage(harness, request).cached_tokens == len(text) // 8 * 8
        assert said(harness, request) == answer_of(request)


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_they_stay_whatever_else_needs_room(layout):
    harness = harness_of(FIRST, layout=layout)
    harness.run()
    for number in range(20):
        harness.submit(make_request(f"{number} " + chr(97 + number) * 400, 20))
        harness.run()
    assert harness.loop.memory.nbytes <= BUDGET
    assert harness.scheduler.counters["parked"] > 10
    request = asked(FIRST)
    harness.submit(request)
    harness.run()
    assert usage(harness, request).cached_tokens == len(FIRST) // 8 * 8
    assert harness.scheduler.pins.kept == 1


def test_nobody_waits_for_a_row_or_a_slot_that_they_have():
    quiet = harness_of()
    harness = harness_of(FIRST, SECOND, limits=replace(LIMITS, slots=2))
    harness.step()
    assert len(harness.scheduler.running) == 2
    steps = []
    for one in (harness, quiet):
        requests = [make_request(letter * 150, 3, rank=(2, 0.0, 0)) for letter in "xy"]
        for request in requests:
            one.submit(request)
        before = len(one.backend.plans)
        ends = []
        for request in requests:
            while usage_of(one, request) is None:
                one.step()
            ends.append(len(one.backend.plans) - before)
            assert said(one, request) == answer_of(request)
        steps.append(ends)
    assert steps[0] == steps[1]
    assert harness.scheduler.counters["preempted"] == 2
    harness.run()
    assert harness.scheduler.pins.kept == 2


def test_in_a_slot_of_its_own_it_computes_only_what_others_leave():
    harness = harness_of(FIRST)
    harness.step()
    request = make_request("x" * 150, 3)
    harness.submit(request)
    own = {row.slot for row in harness.backend.plans[-1].rows}
    while request.request_id not in harness.events or not said(harness, request):
        harness.step()
        assert {row.slot for row in harness.backend.plans[-1].rows}.isdisjoint(own)
    harness.run()
    assert harness.scheduler.pins.kept == 1


def test_two_that_begin_alike_compute_only_what_others_leave():
    harness = harness_of(FIRST + "One.", FIRST + "Two.", limits=replace(LIMITS, slots=3))
    harness.step()
    assert harness.scheduler.counters["prefix_waits"] == 1
    own = {row.slot for row in harness.backend.plans[-1].rows}
    request = make_request("x" * 300, 3)
    harness.submit(request)
    while request.request_id not in harness.events or not said(harness, request):
        harness.step()
        assert {row.slot for row in harness.backend.plans[-1].rows}.isdisjoint(own)
    harness.run()
    assert harness.scheduler.pins.kept == 2


def test_who_follows_it_does_not_wait_behind_others():
    harness = harness_of(FIRST, limits=replace(LIMITS, slots=3))
    harness.step()
    follower, other = asked(FIRST), make_request("x" * 400, 3)
    harness.submit(follower)
    harness.submit(other)
    harness.step()
    assert harness.scheduler.counters["prefix_waits"] == 1
    while usage_of(harness, follower) is None:
        harness.step()
    assert usage_of(harness, other) is None
    assert said(harness, follower) == answer_of(follower)


def test_what_does_not_fit_is_told_and_goes_as_others_do(caplog):
    harness = harness_of(FIRST, SECOND, host=2 * state_size(300))
    harness.run()
    pins = harness.scheduler.pins
    assert (pins.wanted, pins.kept) == (2, 1)
    assert harness.scheduler.counters["pin_refused"] == 1
    assert "Raise that, or pin fewer prompts" in caplog.text


def test_without_memory_to_keep_them_in_they_are_computed_all_the_same(caplog):
    harness = harness_of(FIRST, host=0)
    harness.run()
    assert "Set engine.host_cache" in caplog.text
    assert harness.scheduler.pins.kept == 0
    request = asked(FIRST)
    harness.submit(request)
    harness.run()
    assert usage(harness, request).cached_tokens == len(FIRST) // 8 * 8


@pytest.mark.parametrize(
    ("text", "told"), [("short", ""), ("l" * 512, "has 512 tokens, and n_ctx is 512")]
)
def test_what_cannot_be_of_use_is_not_computed(text, told, caplog):
    harness = harness_of(text)
    harness.run()
    assert harness.backend.plans == []
    assert told in caplog.text


def test_to_look_anew_computes_what_is_new_and_lets_go_of_the_rest():
    pins = [pin(FIRST)]
    harness = harness_of(pins=pins)
    harness.step()
    harness.loop.warm()
    harness.run()
    harness.loop.warm()
    harness.run()
    assert harness.scheduler.counters["prefill_rows"] == len(FIRST)
    pins[:] = [pin(SECOND)]
    harness.loop.warm()
    harness.run()
    assert harness.scheduler.counters["prefill_rows"] == len(FIRST) + len(SECOND)
    pinned = [entry.cells for entry in harness.loop.memory if entry.pins]
    assert pinned == [len(SECOND)]


def test_an_engine_that_was_idle_for_long_does_not_count_as_stalled_while_it_computes_them():
    pins: list[Pin] = []
    harness = harness_of(pins=pins)
    harness.run()
    harness.clock.now += 3600
    pins[:] = [pin(FIRST)]
    harness.loop.warm()
    decode, quiet = harness.backend.decode, []

    def look(plan):
        quiet.append(harness.clock.now - harness.loop.last_progress)
        assert harness.loop.has_work
        return decode(plan)

    harness.backend.decode = look
    harness.step()
    assert quiet == [0.0]


def test_one_that_fails_is_computed_when_it_is_looked_for_again():
    harness = harness_of(FIRST)
    harness.backend.save_fails = True
    harness.run()
    assert harness.scheduler.pins.kept == 0
    harness.backend.save_fails = False
    harness.loop.warm()
    harness.run()
    assert harness.scheduler.pins.kept == 1


def test_an_agent_that_cannot_be_read_keeps_nobody_from_being_served(caplog):
    def broken():
        raise ValueError("no such template")

    harness = LoopHarness(LIMITS, host=HostBudget(BUDGET), pins=broken)
    request = make_request("hello", 3)
    harness.submit(request)
    harness.run()
    assert said(harness, request) == answer_of(request)
    assert "no such template" in caplog.text


def test_it_makes_room_for_who_goes_first_by_its_age_too():
    harness = harness_of(FIRST, limits=replace(LIMITS, slots=1, prefill_rows=16))
    harness.step()
    request = make_request("x", 2, rank=(-1, 0.0, 0))
    harness.submit(request)
    harness.step()
    assert [one.request for one in harness.scheduler.running] == [request]
    harness.run()
    assert said(harness, request) == answer_of(request)
    assert harness.scheduler.pins.kept == 1


def test_it_makes_room_as_often_as_somebody_comes_and_never_goes_first():
    harness = harness_of(FIRST, limits=replace(LIMITS, slots=1, prefill_rows=16))
    for number in range(12):
        harness.step()
        pair = [make_request(f"{number} {one}", 2, rank=(2, 0.0, number)) for one in "xy"]
        for request in pair:
            harness.submit(request)
        while any(usage_of(harness, request) is None for request in pair):
            harness.step()
            assert not any(one.background for one in harness.scheduler.running)
        assert harness.scheduler.counters["preempted"] == number + 1
    harness.run()
    assert harness.scheduler.pins.kept == 1
