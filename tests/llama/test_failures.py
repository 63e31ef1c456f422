"""What goes wrong in a step, and that the context stays usable."""

from __future__ import annotations

import ctypes
import itertools

import pytest
from llama_cpp import llama_cpp as bindings

from server.core.errors import GenerationFailed
from server.engine.plan import DecodeCode, Rows, StepPlan
from tests.llama.conftest import SCRIPTED
from tests.llama.driving import prompt_of
from tests.models import follow

pytestmark = pytest.mark.native

PROMPT = prompt_of(1, 10)
WANTED = follow(SCRIPTED, PROMPT[-1], 5)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Rows(0, 10, [], outputs=0)],
        [Rows(0, 10, [-1], outputs=1)],
        [Rows(0, 10, [10**6], outputs=1)],
        [Rows(0, 10, [1, -1], outputs=1)],
        [Rows(0, 10, [1, 10**6], outputs=1)],
        [Rows(0, 9, [1], outputs=1)],
        [Rows(0, 11, [1], outputs=1)],
        [Rows(1, 5, [1], outputs=0)],
        [Rows(-1, 0, [1], outputs=0)],
        [Rows(4, 0, [1], outputs=0)],
        [Rows(1, 0, [1], outputs=1)],
        [Rows(0, 10, [1], outputs=1), Rows(0, 11, [1], outputs=1)],
        [Rows(2, 0, [1], outputs=0), Rows(0, 10, [1], outputs=1)],
        [Rows(0, 10, [1] * 257, outputs=1)],
        [Rows(0, 10, [1], outputs=2)],
        [Rows(0, 10, [1] * 5, outputs=5)],
    ],
)
def test_malformed_plans_are_refused_and_change_nothing(make_driver, rows):
    driver = make_driver(SCRIPTED, n_batch=256, n_ubatch=64)
    sequence = driver.start(0, PROMPT)
    driver.run(1)
    result = driver.backend.decode(StepPlan(rows))
    assert (result.code, result.samples, result.cells) == (DecodeCode.INVALID, [], {})
    assert driver.backend.cells(0) == 10
    driver.run(4)
    assert sequence.said == WANTED


def test_no_cells_leaves_everything_as_it_was(make_driver):
    driver = make_driver(SCRIPTED, slots=2, kv_cells=256)
    sequence = driver.start(0, PROMPT)
    driver.run(1)
    # 256 cells: 10 are taken, a prompt of 250 has no room.
    late = driver.start(1, prompt_of(2, 250))
    assert driver.step() is DecodeCode.NO_CELLS
    assert (driver.backend.cells(0), driver.backend.cells(1)) == (10, 0)
    driver.cancel(1)
    driver.run(4)
    assert sequence.said == WANTED
    assert late.said == []


@pytest.mark.parametrize("kind", [{}, {"layout": "split"}, {"n_ubatch": 1}])
@pytest.mark.parametrize("computed", range(0, 140, 20))
def test_aborted_step_is_resynchronised_and_can_be_redone(make_driver, kind, computed):
    driver = make_driver(SCRIPTED, **({"n_ubatch": 4} | kind))
    prompts = [prompt_of(seed, 10) for seed in range(3)]
    sequences = [driver.start(slot, prompt) for slot, prompt in enumerate(prompts)]
    driver.run(1)
    driver.cancel(2)
    driver.start(2, prompt_of(5, 9))
    calls = itertools.count()

    def abort(_data: object) -> bool:
        return next(calls) >= computed

    callback = bindings.ggml_abort_callback(abort)
    nothing = ctypes.cast(None, bindings.ggml_abort_callback)
    context = ctypes.c_void_p(driver.backend._context)
    bindings.llama_set_abort_callback(context, callback, None)
    held = {slot: driver.backend.cells(slot) for slot in range(3)}
    planned = [
        Rows(slot, held[slot], driver.running[slot].tokens[held[slot] :], outputs=1)
        for slot in range(3)
    ]
    result = driver.backend.decode(StepPlan(planned))
    bindings.llama_set_abort_callback(context, nothing, None)
    assert result.code in (DecodeCode.ABORTED, DecodeCode.FAILED)
    assert result.samples == []
    for rows in planned:
        cells = result.cells[rows.slot]
        # Every sequence has at least its output row to compute again.
        assert 0 <= cells < rows.start + len(rows.tokens)
        assert cells == driver.backend.cells(rows.slot)
        position = driver.backend._library.memory_seq_pos_max(driver.backend._memory, rows.slot)
        assert position + 1 == cells
    driver.run(4)
    assert [s.said for s in sequences[:2]] == [follow(SCRIPTED, p[-1], 5) for p in prompts[:2]]


def test_an_exception_while_sampling_fails_one_request(make_driver):
    driver = make_driver(SCRIPTED)
    neighbour = driver.start(0, PROMPT)
    broken = driver.start(1, PROMPT, logprobs=1)
    sampler = driver.backend._samplers[1]
    assert sampler is not None
    sampler.logprobs = "nonsense"  # type: ignore[assignment]
    driver.run(1)
    assert neighbour.said == WANTED[:1]
    assert isinstance(broken.samples[0].error, GenerationFailed)


@pytest.mark.parametrize(("slot", "keep"), [(-1, 0), (4, 0), (0, -1), (0, 11)])
def test_truncate_refuses_what_is_not_there(make_driver, slot, keep):
    driver = make_driver(SCRIPTED)
    driver.start(0, PROMPT)
    driver.run(1)
    with pytest.raises(ValueError, match="cannot keep"):
        driver.backend.truncate(slot, keep)
    assert driver.backend.cells(0) == 10


def test_open_replaces_and_close_repeats(make_driver):
    driver = make_driver(SCRIPTED)
    for _ in range(3):
        driver.start(0, PROMPT)
    driver.run(2)
    driver.backend.close(0)
    driver.backend.close(0)
    assert driver.backend.decode(StepPlan([Rows(0, 11, [1], outputs=1)])).code is DecodeCode.INVALID
