"""Cells that go to host memory and come back: the same bits, in either layout, beside whoever runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from server.engine.host_memory import HostBudget
from server.engine.plan import Rows, StepPlan
from server.llama.arena import Arena
from server.llama.model import read_info
from server.llama.params import LlamaParams
from tests.factories import LoopHarness, make_limits, make_request
from tests.llama.conftest import SCRIPTED, kind_of, layouts
from tests.llama.driving import GREEDY, prompt_of
from tests.models import follow

pytestmark = pytest.mark.native

PROMPTS = [prompt_of(seed, 64) for seed in range(4)]


def open_all(driver):
    for slot, prompt in enumerate(PROMPTS):
        driver.start(slot, prompt)
        driver.backend.truncate(slot, 0)


@layouts
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("target", [0, 2])
def test_restored_cells_are_the_saved_ones_bit_for_bit(make_driver, layout, kv_type, target):
    backend = (driver := make_driver(**kind_of(layout, kv_type))).backend
    open_all(driver)
    driver.prefill_logits([PROMPTS[0][:56]])
    state = backend.save(0, 56)
    assert (state.cells, state.nbytes) == (56, backend.state_bytes(0))
    assert backend.cells(0) == 56, "the slot stays as it is"
    backend.truncate(0, 0)
    assert backend.restore(target, state) == backend.cells(target) == 56
    again = backend.save(target, 56)
    assert np.array_equal(state.buffer, again.buffer) or target, "they differ in the slot's number"
    rows = [Rows(target, 56, PROMPTS[0][56:], outputs=1)]
    backend.decode(StepPlan(rows))
    restored = driver.logits(7)
    backend.truncate(target, 0)
    driver.prefill_logits([PROMPTS[0][:56]])
    kept = driver.prefill_logits([PROMPTS[0]])
    assert np.array_equal(restored, kept)


@layouts
def test_a_prefix_is_restored_beside_others_and_cut(make_driver, layout):
    """Into the gaps that others left: within twice llama.cpp's own differences, as all reuse is."""
    backend = (driver := make_driver(**layout)).backend
    open_all(driver)
    single = driver.prefill_logits(PROMPTS[:1])
    backend.truncate(0, 0)
    own = np.abs(driver.prefill_logits(PROMPTS, range(1, 64)) - single).max()
    state = backend.save(0, 64)
    backend.truncate(0, 0)
    backend.truncate(2, 5)
    assert backend.restore(0, state) == 64
    backend.truncate(0, 40)
    assert np.abs(driver.prefill_logits(PROMPTS[:1]) - single).max() <= 2 * own + 1e-6


@pytest.mark.parametrize(
    "kind", [{"kv_type": "f16"}, {"kv_type": "q8_0"}, {"kv_type": "f16", "flash_attention": "off"}]
)
def test_a_streams_cells_are_copied_bit_for_bit_while_it_goes_on(make_driver, kind):
    backend = (driver := make_driver(layout="split", **kind)).backend
    open_all(driver)
    driver.prefill_logits([PROMPTS[0][:56]])
    kept = driver.prefill_logits(PROMPTS[:1])
    backend.truncate(0, 60)
    for target in (1, 3):
        backend.copy(0, target, 56)
        assert (backend.cells(0), backend.cells(target)) == (60, 56)
        backend.decode(StepPlan([Rows(target, 56, PROMPTS[0][56:], outputs=1)]))
        assert np.array_equal(driver.logits(7), kept)
        backend.decode(StepPlan([Rows(0, backend.cells(0), [3, 4], outputs=0)]))
        backend.truncate(0, 60)
    with pytest.raises(ValueError, match="slot 3 cannot have 8 cells of slot 0"):
        backend.copy(0, 3, 8)


def test_too_few_cells_leave_an_empty_slot_and_unharmed_neighbours(make_driver):
    driver = make_driver(SCRIPTED, layout="unified", n_ctx=256, kv_cells=256)
    backend, long = driver.backend, prompt_of(7, 150)
    driver.start(0, long)
    driver.run(2)
    state = backend.save(0, backend.cells(0))
    neighbour = driver.start(1, PROMPTS[1])
    driver.run(1, chunk=64)
    assert backend.restore(2, state) == backend.cells(2) == 0
    driver.run(4)
    assert neighbour.said == follow(SCRIPTED, PROMPTS[1][-1], len(neighbour.said))
    driver.cancel(0)
    assert backend.restore(2, state) == 151


def test_what_cannot_be_saved_or_restored_is_a_bug_and_says_so(make_driver):
    backend = (driver := make_driver()).backend
    driver.start(0, PROMPTS[0])
    driver.run(1)
    with pytest.raises(ValueError, match="cannot save 3 cells of slot 0, which holds 64"):
        backend.save(0, 3)
    state = backend.save(0, 64)
    with pytest.raises(ValueError, match="slot 0 holds 64 cells"):
        backend.restore(0, state)


def test_states_that_lack_cells_or_take_too_long_are_not_offered(make_driver, models):
    loaded = make_driver().backend._loaded
    params = LlamaParams(models.path(None), n_ctx=256, warmup=False)
    assert read_info(loaded, params, 250).saves_cells
    slow = replace(params, flash_attention="off")
    assert not read_info(loaded, slow, 250).saves_cells
    assert read_info(loaded, replace(slow, layout="split"), 250).saves_cells
    window = replace(loaded.library, model_n_swa=lambda _model: 128)
    assert not read_info(replace(loaded, library=window), params, 250).saves_cells


def address(state):
    return state.buffer.ctypes.data


def test_a_second_save_uses_the_memory_of_a_state_that_went(make_driver):
    arena = Arena(2**28)
    backend = (driver := make_driver(arena=arena)).backend
    open_all(driver)
    driver.prefill_logits([PROMPTS[0][:56]])
    state = backend.save(0, 56)
    first, kept = address(state), state.buffer.copy()
    other = backend.save(0, 56)
    assert address(other) > first
    del state
    again = backend.save(0, 56)
    assert address(again) == first
    assert np.array_equal(again.buffer, kept)
    assert np.array_equal(other.buffer, kept)
    del other
    backend.shutdown()
    assert np.array_equal(again.buffer, kept), "what is held outlives the backend"
    assert arena.warm == arena.used > 0, "the rest went back to the system"


def test_without_room_in_the_arena_a_state_is_saved_all_the_same(make_driver):
    backend = (driver := make_driver(arena=(arena := Arena(1)))).backend
    open_all(driver)
    driver.prefill_logits(PROMPTS[:1])
    backend.decode(StepPlan([Rows(0, 64, prompt_of(8, 180), outputs=0)]))
    state = backend.save(0, 244)
    assert state.nbytes > arena.block
    assert arena.used == 0
    backend.truncate(0, 0)
    assert backend.restore(0, state) == 244


def test_a_copy_between_streams_gives_its_memory_back_at_once(make_driver):
    backend = (driver := make_driver(layout="split", arena=(arena := Arena(2**28)))).backend
    open_all(driver)
    driver.prefill_logits(PROMPTS[:1])
    backend.copy(0, 1, 56)
    assert (arena.used, arena.warm > 0) == (0, True)


def test_a_load_touches_what_the_cache_takes_and_no_more_than_there_is(make_driver):
    make_driver(arena=(cold := Arena(2**28)), warmup=False)
    assert cold.warm == 0
    backend = (driver := make_driver(arena=(arena := Arena(2**28)), warmup=True)).backend
    open_all(driver)
    driver.prefill_logits(PROMPTS[:1])
    backend.decode(StepPlan([Rows(0, 64, prompt_of(8, 180), outputs=0)]))
    full = backend.state_bytes(0) * 256 // 244
    assert 3.9 * full < arena.warm < 4.1 * full + arena.block
    assert arena.used == 0
    small = Arena(2**16)
    make_driver(arena=small, warmup=True)
    assert small.warm == small.block == 2**16


@layouts
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_served_requests_with_parked_prefixes_equal_alone(make_driver, layout, kv_type):
    """Real weights, whose answers tell a wrong cell: eight agents in turn over four slots."""
    arena = Arena(2**28)
    driver = make_driver(**kind_of(layout, kv_type), n_ctx=256, threads=1, arena=arena)
    limits = make_limits(
        slots=4, n_ctx=256, max_rows=128, prefill_rows=64, prefill_rows_decoding=32
    )
    host = HostBudget(2**28)
    harness = LoopHarness(limits, real=driver.backend, host=host)
    systems = [prompt_of(10 + agent, 160) for agent in range(8)]

    def ask(agent, question):
        request = make_request([*systems[agent], *question], 8, sampling=GREEDY, ignore_eos=True)
        harness.submit(request)
        harness.run()
        events = harness.events[request.request_id]
        return [token for event in events for token in getattr(event, "token_ids", ())]

    first = [ask(agent, [5, 6, 7]) for agent in range(8)]
    counters = harness.scheduler.counters
    assert counters["prefill_rows"] == 8 * 163
    second = [ask(agent, [5, 6, 7]) for agent in range(8)]
    assert counters["restored"] >= 4
    assert counters["prefill_rows"] - 8 * 163 <= 8 * 11
    # Rounding may turn one token of random weights into another; a wrong cell turns nearly all.
    same = sum(
        a == b
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert same == 64 if (layout, kv_type) == ({"layout": "split"}, "q8_0") else same >= 48
    assert 0 < harness.loop.memory.nbytes == host.used <= host.limit
    assert host.used <= arena.used < host.used + 32 * arena.block
