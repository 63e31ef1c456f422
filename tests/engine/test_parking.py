"""Prefixes that go to host memory and come back, over the scripted backend: every answer is what it is alone."""

import dataclasses

import pytest

from server.core.events import Finished, Started
from server.engine.eviction import MOST_BESIDE
from server.engine.host_memory import HostBudget, HostMemory
from server.engine.plan import Park, Restore, Truncation
from tests.factories import LoopHarness, make_limits, make_request, state_size

LIMITS = make_limits(
    slots=2, n_ctx=512, kv_cells=1024, max_rows=128, prefill_rows=128, prefill_rows_decoding=64
)
PLENTY = 10**6


def ask(harness, prompt, max_tokens=6, **fields):
    request = make_request(prompt, max_tokens, **fields)
    harness.submit(request)
    harness.run()
    return request


def alone(request):
    harness = LoopHarness(LIMITS)
    harness.submit(request)
    harness.run()
    return harness.text(request.request_id)


def parked_harness(limit=PLENTY, prompts=("a" * 300, "b" * 300, "c" * 300), limits=LIMITS):
    """One after the other, over two slots: the first one's cells are the next one's to overwrite."""
    harness = LoopHarness(limits, host=HostBudget(limit))
    for prompt in prompts:
        ask(harness, prompt)
    return harness


def cached(harness, request):
    last = harness.events[request.request_id][-1]
    assert isinstance(last, Finished)
    return last.usage.cached_tokens


def test_a_prefix_that_had_to_make_room_comes_back_from_host_memory():
    harness = parked_harness()
    before = harness.scheduler.counters["prefill_rows"]
    again = ask(harness, "a" * 296 + "and another question")
    assert harness.text(again.request_id) == alone(again)
    assert cached(harness, again) == 296
    assert harness.events[again.request_id][0] == Started(1, 316, 296)
    counters = harness.scheduler.counters
    assert counters["prefill_rows"] - before == 20
    assert counters["parked"] == 2, "the one that made room now, too"
    assert counters["restored"] == 1
    assert counters["bytes_restored"] == state_size(305)
    assert counters["bytes_parked"] == 2 * state_size(305)


def test_without_host_memory_it_is_computed_again():
    harness = parked_harness(limit=0)
    again = ask(harness, "a" * 296 + "and another question")
    assert cached(harness, again) == 0
    assert harness.loop.memory is None
    assert harness.backend.saves == []
    assert harness.scheduler.counters["prefix_missed_evicted"] == 1


@pytest.mark.parametrize("failure", ["save_fails", "restore_fails"])
def test_a_copy_that_fails_costs_computing_and_nothing_else(failure):
    harness = LoopHarness(LIMITS, host=HostBudget(PLENTY))
    setattr(harness.backend, failure, True)
    for letter in "abc":
        ask(harness, letter * 300)
    requests = [make_request("a" * 296 + tail, 6) for tail in ("one", "two and more")]
    for request in requests:
        harness.submit(request)
    harness.run()
    for request in requests:
        assert harness.text(request.request_id) == alone(request)
    counters = harness.scheduler.counters
    assert counters["restored"] == 0
    if failure == "save_fails":
        assert counters["park_failed"] >= 2
        assert harness.host.used == 0
    else:
        assert counters["restore_failed"] >= 1
        assert counters["prefix_missed_failed"] == counters["restore_failed"]
        assert harness.events[requests[0].request_id][0].missed == "failed"
        first = cached(harness, requests[0])
        assert first == 0


def test_followers_share_a_restored_prefix_in_the_very_same_step():
    limits = make_limits(
        slots=4, n_ctx=512, kv_cells=1400, max_rows=128, prefill_rows=128, prefill_rows_decoding=64
    )
    harness = parked_harness(
        prompts=["a" * 300, *(letter * 400 for letter in "bcd")], limits=limits
    )
    assert harness.scheduler.counters["parked"] >= 1
    requests = [make_request("a" * 296 + f"{number} asks a question", 6) for number in range(4)]
    before = harness.scheduler.counters["prefill_rows"]
    for request in requests:
        harness.submit(request)
    harness.step()
    assert [cells for _, cells in harness.backend.restores] == [305]
    places = {
        tuple(harness.backend.places[slot.index][:296]) for slot in harness.scheduler.pool.slots
    }
    assert len(places) == 1, "the same cells in all four"
    harness.run()
    for request in requests:
        assert harness.text(request.request_id) == alone(request)
        assert cached(harness, request) == 296
    assert harness.scheduler.counters["prefill_rows"] - before == 4 * 17


def test_a_restored_prefix_that_makes_room_again_is_not_saved_again():
    harness = parked_harness()
    saves = len(harness.backend.saves)
    for letter in "abcabc":
        ask(harness, letter * 300)
    assert len(harness.backend.saves) == saves + 2, "each once"
    assert harness.scheduler.counters["restored"] == 6


def test_a_conversation_that_went_on_replaces_its_beginning():
    harness = parked_harness()
    first = "a" * 300
    answer = alone(make_request(first, 6))
    second = ask(harness, f"{first}{answer}{'x' * 100}")
    assert cached(harness, second) == 304, (
        "the answer's tokens, too, but for the last, never computed"
    )
    for letter in "bcb":
        ask(harness, letter * 300)
    lengths = sorted(entry.cells for entry in harness.loop.memory)
    assert lengths == [305, 305, 411]


def test_another_scope_gets_nothing_out_of_host_memory():
    harness = parked_harness()
    yours = ask(harness, "a" * 300, cache_scope="you")
    forbidden = ask(harness, "a" * 300, reuse_prefix=False)
    assert (cached(harness, yours), cached(harness, forbidden)) == (0, 0)
    assert harness.backend.restores == []


def test_what_is_public_comes_back_for_another_scope_and_nothing_after_it():
    harness = LoopHarness(LIMITS, host=HostBudget(PLENTY))
    ask(harness, "a" * 200 + "s" * 100, cache_scope="me", public_tokens=200)
    for letter in "bc":
        ask(harness, letter * 300)
    yours = ask(harness, "a" * 200 + "s" * 100, cache_scope="you", public_tokens=200)
    assert cached(harness, yours) == 200
    assert harness.text(yours.request_id) == alone(yours)


def test_what_the_cache_has_nearly_all_of_is_not_fetched():
    harness = parked_harness()
    ask(harness, "a" * 250 + "z" * 40)  # restored, cut to 248
    restores = len(harness.backend.restores)
    again = ask(harness, "a" * 300)
    assert cached(harness, again) == 248
    assert len(harness.backend.restores) == restores


def test_short_ends_of_shared_beginnings_are_not_saved():
    harness = LoopHarness(LIMITS, host=HostBudget(PLENTY))
    for number in range(8):
        ask(harness, "s" * 400 + f"question {number} of a few words")
    assert harness.backend.saves == []


def test_a_conversation_is_saved_before_another_goes_on_from_what_both_begin_with():
    harness = LoopHarness(LIMITS, host=HostBudget(PLENTY))
    for letter in "abc":
        ask(harness, "s" * 64 + letter * 300)
    assert harness.backend.saves == [(0, 369)]
    again = ask(harness, "s" * 64 + "a" * 296 + "and another question")
    assert cached(harness, again) == 360
    assert harness.text(again.request_id) == alone(again)


def test_a_step_copies_little_beside_what_would_be_lost():
    """Twenty conversations of one agent: who comes needs the ends of ten, and each would be copied as a whole."""
    limits = make_limits(slots=24, n_ctx=2048, kv_cells=4096, max_rows=512, prefill_rows=512)
    harness = LoopHarness(limits, host=HostBudget(PLENTY))
    for number in range(20):
        ask(harness, "s" * 1000 + chr(65 + number) * 100)
    assert harness.backend.saves == []
    large = make_request("X" * 1900, 100)
    harness.submit(large)
    harness.step()
    assert cells_of(harness).count(1000) >= 9
    saves = [cells for _, cells in harness.backend.saves]
    assert saves == [1105] * (MOST_BESIDE // 1000)


def test_the_first_edit_saves_what_the_next_one_drops():
    harness = parked_harness(prompts=["a" * 300, "b" * 300])
    harness.scheduler.add(make_request("c" * 300, 6), 0.0)
    edits = list(harness.scheduler.admit(0.0))
    slot = edits[0].slot
    assert [type(edit) for edit in edits[:2]] == [Park, Truncation]
    assert edits[1] == Truncation(slot, 0)
    assert not any(isinstance(edit, Restore) for edit in edits)


def test_a_longer_entry_than_the_request_may_use_makes_room_for_itself():
    limits = make_limits(
        slots=2, n_ctx=512, kv_cells=600, max_rows=128, prefill_rows=128, prefill_rows_decoding=64
    )
    harness = parked_harness(prompts=["a" * 450, "b" * 300, "c" * 250], limits=limits)
    before = len(harness.backend.restores)
    short = ask(harness, "a" * 200 + "?", 2)
    assert len(harness.backend.restores) == before + 1
    assert cached(harness, short) == 192
    assert harness.text(short.request_id) == alone(short)


def test_agents_in_rotation_are_restored_and_not_computed():
    """Eight agents of 1,000 tokens over four slots of 4,096 cells: the second round computes questions only."""
    limits = make_limits(
        slots=4, n_ctx=4096, max_rows=512, prefill_rows=512, prefill_rows_decoding=128
    )
    harness = LoopHarness(limits, host=HostBudget(10**7))
    prompts = [(chr(97 + agent) * 7 + str(agent)) * 125 for agent in range(8)]
    for prompt in prompts:
        ask(harness, prompt + "first question")
    counters = harness.scheduler.counters
    assert counters["prefill_rows"] == 8 * 1014
    rounds = []
    for turn in range(3):
        before = counters["prefill_rows"]
        for prompt in prompts:
            request = ask(harness, prompt + f"question number {turn}")
            assert cached(harness, request) == 1000
        rounds.append(counters["prefill_rows"] - before)
    assert rounds == [8 * 17] * 3
    assert counters["restored"] >= 3 * 4
    assert counters["parked"] <= 8
    longest = state_size(1000 + 17 + 5)
    assert 0 < counters["bytes_parked"] <= 8 * longest
    assert 0 < counters["bytes_restored"] <= 3 * 8 * longest


COOL = make_limits(
    slots=4,
    n_ctx=1024,
    max_rows=512,
    prefill_rows=512,
    prefill_rows_decoding=128,
    cold_steps=32,
)


def idle_beside_a_stream(limits=COOL, limit=PLENTY, lengths=(600, 100, 800), **fields):
    """Three prefixes, then a stream; how many steps until its end is up to the caller."""
    harness = LoopHarness(limits, host=HostBudget(limit), **fields)
    for letter, length in zip("abc", lengths, strict=True):
        ask(harness, letter * length)
    stream = make_request("a stream", 200)
    harness.submit(stream)
    harness.step()
    return harness, stream


def cells_of(harness):
    return sorted(slot.cells for slot in harness.scheduler.pool.slots if slot.sequence is None)


def test_cells_that_stay_idle_leave_the_cache_once_they_have_cost_as_much_as_a_copy():
    harness, stream = idle_beside_a_stream()
    harness.step(31)
    assert harness.backend.saves == []
    harness.step(2)
    # 1,515 idle cells are too many, the 910 that are left are not.
    assert harness.backend.saves == [(0, 605)]
    assert cells_of(harness) == [0, 105, 805]
    assert len(harness.backend.cells[0]) == 0
    harness.run()
    assert len(harness.backend.saves) == 1
    assert harness.text(stream.request_id) == alone(stream)
    again = ask(harness, "a" * 600 + "and now?")
    assert cached(harness, again) == 600
    assert harness.text(again.request_id) == alone_in(COOL, again)


def alone_in(limits, request):
    harness = LoopHarness(limits)
    harness.submit(request)
    harness.run()
    return harness.text(request.request_id)


def test_what_is_of_use_to_somebody_stays_warm():
    harness, _ = idle_beside_a_stream()
    harness.step(20)
    again = make_request("a" * 600 + "again", 2)
    harness.submit(again)
    harness.step(70)
    assert harness.backend.saves == [(1, 105), (2, 805)]
    assert cells_of(harness)[-1] == 606


@pytest.mark.parametrize("failing", ["no room", "save fails", "no steps", "split"])
def test_what_does_not_leave_for_host_memory_stays_in_the_cache(failing, monkeypatch):
    limit = 1000 if failing == "no room" else PLENTY
    limits = COOL if failing != "no steps" else dataclasses.replace(COOL, cold_steps=0)
    harness, _ = idle_beside_a_stream(limits, limit)
    if failing == "split":
        harness.scheduler.pool._cooling = None
    harness.backend.save_fails = failing == "save fails"
    harness.step(100)
    assert cells_of(harness) == [105, 605, 805]
    refused = harness.scheduler.counters["park_refused"] + harness.scheduler.counters["park_failed"]
    assert refused == (3 if failing in ("no room", "save fails") else 0), "each is offered once"


def test_what_finds_no_room_is_not_looked_for_in_every_step(monkeypatch):
    harness, _ = idle_beside_a_stream(limit=1000)
    harness.step(40)
    assert harness.scheduler.counters["park_refused"] == 3
    find, looks = HostMemory.find, []

    def counted(*args):
        looks.append(args)
        return find(*args)

    monkeypatch.setattr(HostMemory, "find", counted)
    harness.step(64)
    assert 0 < len(looks) <= 3 * 3


def test_a_shared_beginning_stays_for_who_runs_and_its_long_end_goes():
    harness = LoopHarness(COOL, host=HostBudget(PLENTY))
    for tail in ("x" * 450, "y" * 400, "z" * 350):
        ask(harness, "s" * 400 + tail)
    stream = make_request("s" * 400 + "stream", 200)
    harness.submit(stream)
    harness.step(40)
    assert cells_of(harness) == [400, 755, 855], (
        "the first one's end: who came took its beginning, so it was of use"
    )
    harness.run()
    assert harness.text(stream.request_id) == alone_in(COOL, stream)


def test_what_is_computed_sooner_than_copied_is_computed():
    harness = parked_harness()
    memory = harness.loop.memory
    memory.measured(100, 1.0)  # 3 s for the entry
    memory.row_seconds = 0.001
    again = ask(harness, "a" * 300)
    assert cached(harness, again) == 0
    assert harness.backend.restores == []
    assert harness.text(again.request_id) == alone(again)


ROW_SECONDS = 0.006
"""On two CPU cores; to save a cell took 0.28 ms there."""


def call_seconds(plan):
    return ROW_SECONDS * sum(len(row.tokens) for row in plan.rows)


def measuring_harness(limits, save_seconds):
    """Calls take `ROW_SECONDS` a row, to save `save_seconds` a cell."""
    harness = LoopHarness(limits, host=HostBudget(10**7), cost=call_seconds)
    save = harness.backend.save

    def timed(slot, cells):
        harness.clock.now += save_seconds * cells
        return save(slot, cells)

    harness.backend.save = timed  # type: ignore[method-assign]
    return harness


ROTATION = make_limits(
    slots=4, n_ctx=4096, max_rows=512, prefill_rows=512, prefill_rows_decoding=128
)


@pytest.mark.parametrize(("save_seconds", "again"), [(0.00028, False), (0.00001, True)])
def test_agents_in_rotation_are_saved_with_each_question_only_where_copies_are_quick(
    save_seconds, again
):
    harness = measuring_harness(ROTATION, save_seconds)
    prompts = [(chr(97 + agent) * 7 + str(agent)) * 125 for agent in range(8)]
    for turn in range(4):
        for agent, prompt in enumerate(prompts):
            request = ask(harness, prompt + f"{agent}{turn}" * 30)
            assert cached(harness, request) == (1000 if turn else 0)
    counters = harness.scheduler.counters
    if again:
        assert len(harness.backend.saves) > 16
        assert counters["park_spared"] == 0
    else:
        assert len(harness.backend.saves) <= 8, "each once"
        assert counters["park_spared"] >= 16


def test_a_conversation_that_grew_by_much_is_saved_again():
    limits = dataclasses.replace(LIMITS, n_ctx=768)
    harness = measuring_harness(limits, 0.00028)
    for prompt in ("a" * 340, "b" * 340, "c" * 340, "a" * 340 + "and" * 45, "b" * 340, "c" * 340):
        ask(harness, prompt)
    assert sorted(entry.cells for entry in harness.loop.memory) == [345, 345, 480]


def test_a_long_document_that_goes_piece_by_piece_is_saved_before_much_is_lost():
    """No piece is worth a copy of all of it; each is followed by the next."""
    limits = make_limits(slots=16, n_ctx=4096, kv_cells=4096, max_rows=512, prefill_rows=512)
    harness = measuring_harness(limits, 0.00028)
    harness.loop.memory.measured_out(1000, 0.28)
    ask(harness, "d" * 3300)
    for number in range(12):
        ask(harness, chr(65 + number) * 244)
    assert [cells > 2000 for _, cells in harness.backend.saves] == [True]
    again = ask(harness, "d" * 3300)
    assert cached(harness, again) > 2000


def test_cold_cells_that_are_not_worth_a_copy_are_dropped():
    harness, stream = idle_beside_a_stream(cost=call_seconds)
    harness.loop.memory.measured_out(1000, 2.0)
    harness.step(33)
    assert harness.backend.saves == []
    assert cells_of(harness) == [0, 105, 805]
    assert harness.scheduler.counters["park_spared"] == 1
    harness.run()
    assert harness.text(stream.request_id) == alone(stream)
