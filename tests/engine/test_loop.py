"""Scheduler, slots and loop together, stepped by hand over the scripted backend."""

import threading

import pytest

from server.core.errors import EngineDead, GenerationFailed, QueueTimeout
from server.core.events import Delta, Failed, Finished, FinishReason, SampledLogprobs, Started
from server.engine.interface import EngineState
from server.engine.plan import DecodeCode, Sample
from tests.factories import EOG, LoopHarness, hashed_successor, make_limits, make_request


def alone(request):
    """The answer of a server that has nothing else to do."""
    harness = LoopHarness(make_limits(n_ctx=128))
    harness.submit(request)
    harness.run()
    return harness.text(request.request_id)


def start(harness, request_id) -> Started:
    event = harness.events[request_id][0]
    assert isinstance(event, Started)
    return event


def last(harness, request_id):
    events = harness.events[request_id]
    assert sum(isinstance(event, Finished | Failed) for event in events) == 1
    return events[-1]


def ending(harness, request_id) -> Finished:
    event = last(harness, request_id)
    assert isinstance(event, Finished)
    return event


def failure(harness, request_id):
    event = last(harness, request_id)
    assert isinstance(event, Failed)
    return event.error


def test_one_request_from_start_to_finish():
    harness = LoopHarness()
    request = make_request("hello", 3)
    harness.submit(request)
    harness.run()
    tokens = list(b"hello")
    for _ in range(3):
        tokens.append(hashed_successor(tokens))
    deltas = [event for event in harness.events[request.request_id] if isinstance(event, Delta)]
    finished = ending(harness, request.request_id)
    assert start(harness, request.request_id) == Started(0, 5, 0, missed="none")
    assert [delta.token_ids for delta in deltas] == [(token,) for token in tokens[5:]]
    assert finished.reason is FinishReason.LENGTH
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (5, 3)
    assert finished.timings.queued == 0
    assert finished.timings.decode > 0
    assert harness.backend.open_slots == {}


def test_batched_equals_alone_and_decode_rows_come_first():
    requests = [make_request(f"request number {index} " * 2, 10) for index in range(5)]
    harness = LoopHarness(make_limits(slots=3))
    for request in requests:
        harness.submit(request)
    harness.run()
    for request in requests:
        assert harness.text(request.request_id) == alone(request)
    for plan in harness.backend.plans:
        assert plan.prefill_rows <= (16 if plan.decode_rows else 32)


def test_prefill_goes_in_aligned_chunks_without_stopping_the_stream():
    harness = LoopHarness(make_limits(n_ctx=128))
    stream = harness.submit(make_request("a", 60))
    harness.step(2)
    harness.submit(make_request("b" * 61, 2))
    generated = []
    while harness.scheduler.running[-1].generated == 0 or len(harness.scheduler.running) < 2:
        before = len(harness.events[stream])
        harness.step()
        generated.append(len(harness.events[stream]) - before)
    chunks = [plan.prefill_rows for plan in harness.backend.plans[2:]]
    assert chunks == [16, 16, 16, 13]
    assert generated == [1] * len(chunks)


def test_a_finished_prefix_is_not_computed_again():
    harness = LoopHarness()
    first = make_request("the same long beginning, ", 4)
    harness.submit(first)
    harness.run()
    harness.backend.plans.clear()
    second = make_request("the same long beginning, and another end", 4)
    harness.submit(second)
    harness.run()
    assert start(harness, second.request_id).cached_tokens == 24
    assert sum(plan.prefill_rows for plan in harness.backend.plans) == 40 - 24
    assert harness.text(second.request_id) == alone(second)
    assert harness.scheduler.counters["cached_tokens"] == 24


def test_a_fully_cached_prompt_computes_its_last_rows_again():
    harness = LoopHarness()
    harness.submit(make_request("x" * 32, 4))
    harness.run()
    request = make_request("x" * 32, 4)
    harness.submit(request)
    harness.run()
    assert start(harness, request.request_id).cached_tokens == 24
    assert harness.text(request.request_id) == alone(request)


def test_end_of_generation_token():
    harness = LoopHarness(successor=lambda tokens: EOG if len(tokens) >= 8 else 65)
    request = make_request("hello", 20)
    harness.submit(request)
    harness.run()
    assert harness.text(request.request_id) == "AAA"
    assert ending(harness, request.request_id).reason is FinishReason.STOP


def test_stop_string_ends_and_is_not_shown():
    script = b"hello, here it is<end>never"
    harness = LoopHarness(successor=lambda tokens: script[len(tokens)])
    request = make_request("hello", 22, stop=("<end>", "zzz"))
    harness.submit(request)
    harness.run()
    assert harness.text(request.request_id) == ", here it is"
    finished = ending(harness, request.request_id)
    assert (finished.reason, finished.stop_match) == (FinishReason.STOP, "<end>")


def test_held_back_text_is_given_when_the_length_ends_it():
    script = b"hello <en"
    harness = LoopHarness(successor=lambda tokens: script[len(tokens)])
    request = make_request("hello", 4, stop=("<end>",))
    harness.submit(request)
    harness.run()
    assert harness.text(request.request_id) == " <en"
    assert ending(harness, request.request_id).reason is FinishReason.LENGTH


def test_log_probabilities_travel_with_their_token():
    logprobs = SampledLogprobs(65, -0.5, ())
    harness = LoopHarness(sample=lambda _slot: Sample(65, logprobs))
    request = make_request("hello", 2, logprobs=0)
    harness.submit(request)
    harness.run()
    deltas = [event for event in harness.events[request.request_id] if isinstance(event, Delta)]
    assert [delta.logprobs for delta in deltas] == [(logprobs,)] * 2


@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_abort_frees_the_slot_within_one_step_and_spares_the_neighbour(steps):
    harness = LoopHarness(make_limits(n_ctx=128))
    neighbour = make_request("neighbour", 40)
    victim = make_request("v" * 60, 40)
    harness.submit(neighbour)
    harness.submit(victim)
    harness.step(steps)
    harness.loop.abort(victim.request_id)
    harness.step()
    assert all(
        slot.sequence is None or slot.sequence.request is neighbour
        for slot in harness.scheduler.pool.slots
    )
    assert ending(harness, victim.request_id).reason is FinishReason.ABORTED
    harness.loop.abort(victim.request_id)
    harness.run()
    assert harness.text(neighbour.request_id) == alone(neighbour)
    assert harness.scheduler.counters["aborted"] == 1


def test_a_slot_given_on_in_the_step_that_frees_it_keeps_its_new_sampler():
    harness = LoopHarness(make_limits(slots=1))
    victim, heir = make_request("victim", 20), make_request("heir", 6)
    harness.submit(victim)
    harness.step(3)
    harness.submit(heir)
    harness.loop.abort(victim.request_id)
    harness.run()
    assert harness.text(heir.request_id) == alone(heir)


def test_what_an_aborted_prefill_computed_serves_the_next():
    harness = LoopHarness(make_limits(n_ctx=128))
    first = make_request("p" * 100, 4)
    harness.submit(first)
    harness.step()
    harness.loop.abort(first.request_id)
    second = make_request("p" * 110, 4)
    harness.submit(second)
    harness.run()
    assert start(harness, second.request_id).cached_tokens == 32


def test_a_request_waits_for_cells_not_only_for_a_slot():
    harness = LoopHarness(make_limits(slots=4, kv_cells=80))
    big, small = make_request("b" * 40, 20), make_request("s" * 20, 10)
    harness.submit(big)
    harness.submit(small)
    harness.step()
    assert [each.request for each in harness.scheduler.running] == [big]
    harness.run()
    assert harness.backend.most_cells <= 80
    assert harness.text(small.request_id) == alone(small)


def test_who_waits_too_long_is_told():
    harness = LoopHarness(make_limits(slots=1))
    harness.submit(make_request("hello", 50))
    late = harness.submit(make_request("late", 5, deadline=harness.clock.now + 0.055))
    harness.step(5)
    assert late not in harness.events
    harness.step()
    error = failure(harness, late)
    assert isinstance(error, QueueTimeout)
    assert "within 0.05 s." in error.message
    assert harness.scheduler.running


def test_a_sampler_that_cannot_be_made_ends_its_request_alone():
    harness = LoopHarness()
    bad, good = make_request("bad", 5), make_request("good", 5)
    harness.backend.fail_open.add(bad.request_id)
    harness.submit(bad)
    harness.submit(good)
    harness.run()
    assert isinstance(failure(harness, bad.request_id), GenerationFailed)
    assert harness.text(good.request_id) == alone(good)


def test_a_sampler_that_fails_ends_its_request_alone():
    harness = LoopHarness()
    bad, good = make_request("bad", 5), make_request("good", 5)
    harness.backend.fail_sample[bad.request_id] = 2
    harness.submit(bad)
    harness.submit(good)
    harness.run()
    assert isinstance(failure(harness, bad.request_id), GenerationFailed)
    assert len(harness.text(bad.request_id)) == 2
    assert harness.text(good.request_id) == alone(good)


@pytest.mark.parametrize("code", [DecodeCode.NO_CELLS, DecodeCode.ABORTED, DecodeCode.FAILED])
@pytest.mark.parametrize("call", range(6))
def test_a_decode_call_that_fails_once_costs_nobody_anything(code, call):
    harness = LoopHarness(make_limits(n_ctx=128), codes={call: code})
    requests = [make_request("one " * 20, 6), make_request("two", 6)]
    for request in requests:
        harness.submit(request)
    harness.run()
    for request in requests:
        assert harness.text(request.request_id) == alone(request)
    assert harness.scheduler.counters[f"decode_{code.name.lower()}"] == 1


def test_no_cells_empties_idle_slots_first():
    harness = LoopHarness(codes={20: DecodeCode.NO_CELLS})
    harness.submit(make_request("first", 10))
    harness.run()
    assert harness.scheduler.pool.idle_cells > 0
    request = make_request("second", 30)
    harness.submit(request)
    harness.run()
    assert harness.scheduler.pool.idle_cells == len(b"second") + 29
    assert harness.text(request.request_id) == alone(request)


def test_no_cells_for_good_fails_the_youngest_and_spares_the_rest():
    codes = dict.fromkeys(range(3, 8), DecodeCode.NO_CELLS)
    harness = LoopHarness(codes=codes)
    old, young = make_request("old", 8), make_request("young", 8)
    for request in (old, young):
        harness.submit(request)
        harness.step()
    harness.run()
    assert isinstance(failure(harness, young.request_id), GenerationFailed)
    assert harness.text(old.request_id)[:2] == alone(old)[:2]


def test_a_refused_batch_fails_those_in_it_and_the_engine_goes_on(caplog):
    harness = LoopHarness(codes={1: DecodeCode.INVALID})
    bad, later = make_request("bad", 5), make_request("later", 5)
    harness.submit(bad)
    harness.run()
    harness.submit(later)
    harness.run()
    assert isinstance(failure(harness, bad.request_id), GenerationFailed)
    assert harness.text(later.request_id) == alone(later)
    assert "INVALID the plan is wrong" in caplog.text


def test_two_failed_calls_in_a_row_kill_the_engine():
    harness = LoopHarness(codes={1: DecodeCode.FAILED, 2: DecodeCode.FAILED})
    harness.submit(make_request("hello", 5))
    harness.loop.run()
    assert harness.loop.state is EngineState.DEAD
    assert isinstance(harness.loop.error, EngineDead)
    assert harness.states == [EngineState.READY, EngineState.DEAD]
    assert harness.backend.closed


def test_recurrent_memory_starts_over_after_a_call_that_was_cut_short():
    harness = LoopHarness(codes={2: DecodeCode.ABORTED})
    harness.scheduler._recovery._partial_removal = False
    request = make_request("hello", 6)
    harness.submit(request)
    harness.run()
    assert harness.text(request.request_id) == alone(request)


def test_no_step_without_work():
    harness = LoopHarness()
    assert harness.loop.step() is False
    assert harness.backend.plans == []


class Burst(threading.Event):
    """In place of the loop's event: whenever it waits after a rest, the next request comes."""

    def __init__(self, harness: LoopHarness, requests) -> None:
        super().__init__()
        self.harness = harness
        self.coming = list(requests)
        self.waited: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        if self.coming:
            self.harness.submit(self.coming.pop(0))
        return bool(self.coming)


def test_a_burst_after_a_rest_is_computed_together():
    limits = make_limits(slots=4, n_ctx=512, max_rows=512, prefill_rows=512)
    harness = LoopHarness(limits, cost=lambda plan: 0.001 * sum(len(r.tokens) for r in plan.rows))
    harness.submit(make_request("t" * 100, 2))
    harness.run()
    burst = Burst(harness, [make_request(letter * 64, 2) for letter in "bcdef"])
    harness.loop._wake = burst
    harness.loop._wait()  # the rest, which the first of them ends
    harness.step()
    first = harness.backend.plans[-1]
    assert [len(row.tokens) for row in first.rows] == [64] * 4, "as many as there are slots"
    assert burst.waited[0] is None
    assert burst.waited[1:] == pytest.approx([0.064 / 32, 0.128 / 32, 0.192 / 32], rel=0.1)
    harness.step()
    assert len(burst.waited) == 4, "only after a rest"


def test_who_comes_alone_waits_for_nobody_for_long():
    harness = LoopHarness(cost=lambda plan: float(sum(len(row.tokens) for row in plan.rows)))
    harness.submit(make_request("t" * 40, 2))
    harness.run()
    burst = Burst(harness, [make_request("long" * 10, 2)])
    harness.loop._wake = burst
    harness.loop._wait()
    harness.step()
    assert burst.waited == [None, 0.01]
    assert len(harness.backend.plans[-1].rows) == 1
