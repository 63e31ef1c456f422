"""Behaviour of llama.cpp that this server relies on, or protects itself from, pinned for upgrades."""

from __future__ import annotations

import ctypes

import pytest
from llama_cpp import llama_cpp as bindings

from server.catalog.gguf_types import BLOCKS
from server.engine.plan import DecodeCode, Rows, StepPlan
from tests.llama.conftest import SCRIPTED
from tests.llama.driving import prompt_of
from tests.models import follow

pytestmark = pytest.mark.native


def test_cells_need_not_be_contiguous_and_can_be_filled_to_the_last(make_driver):
    driver = make_driver(SCRIPTED, slots=4, kv_cells=256)
    for slot in range(4):
        driver.start(slot, prompt_of(slot, 60))
    driver.run(1, chunk=7)
    driver.run(9, chunk=7)
    driver.cancel(1)
    driver.cancel(2)
    used = driver.backend.cells(0) + driver.backend.cells(3)
    late = driver.start(1, prompt_of(9, 256 - used - 2))
    driver.run(1)
    assert len(late.said) == 1
    assert sum(driver.backend.cells(slot) for slot in range(4)) == 256
    assert driver.step() is DecodeCode.NO_CELLS


def test_an_empty_sequence_takes_any_start_position(make_driver):
    driver = make_driver(SCRIPTED)
    # Past the backend's own check: this is why it has one.
    driver.backend._batch.fill([Rows(0, 50, [1], outputs=0)])
    library, context = driver.backend._library, driver.backend._context
    assert library.decode(context, driver.backend._batch.native) == 0
    assert library.memory_seq_pos_max(driver.backend._memory, 0) == 50


def test_sampling_accepts_the_token_that_it_drew(make_driver):
    driver = make_driver(SCRIPTED)
    source = driver.backend._source
    prompt = prompt_of(1, 5)
    driver.start(0, prompt)
    driver.run(1)
    library = source.library
    chain = library.sampler_chain_init(library.sampler_chain_default_params())
    penalties = library.sampler_init_penalties(source.n_vocab, 64, 1.0, 0.0, 1000.0)
    library.sampler_chain_add(chain, penalties)
    library.sampler_chain_add(chain, library.sampler_init_greedy())
    drawn = [library.sampler_sample(chain, driver.backend._context, 4) for _ in range(20)]
    library.sampler_free(chain)
    assert len(set(drawn)) == 20
    assert drawn[0] == follow(SCRIPTED, prompt[-1], 1)[0]


def test_ids_beyond_the_slots_can_hold_shared_prefixes(make_driver):
    driver = make_driver(SCRIPTED, slots=2)
    driver.start(0, prompt_of(1, 20))
    driver.run(1)
    memory = ctypes.c_void_p(driver.backend._memory)
    bindings.llama_memory_seq_cp(memory, 0, 255, 0, 16)
    driver.cancel(0)
    library = driver.backend._library
    assert library.memory_seq_pos_max(driver.backend._memory, 255) == 15
    bindings.llama_memory_seq_cp(memory, 255, 1, 0, 16)
    assert library.memory_seq_pos_max(driver.backend._memory, 1) == 15


def test_tensor_types_are_those_of_ggml():
    ggml = ctypes.CDLL(bindings._lib._name)
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    known = {
        number: (name.decode().upper(), ggml.ggml_blck_size(number), size)
        for number in range(bindings.GGML_TYPE_COUNT)
        if (name := ggml.ggml_type_name(number)) and (size := ggml.ggml_type_size(number))
    }
    assert {number: (name.upper(), *rest) for number, (name, *rest) in BLOCKS.items()} == known


def test_rows_of_one_sequence_may_come_beside_a_prefill(make_driver):
    driver = make_driver(SCRIPTED)
    driver.start(0, prompt_of(1, 5))
    driver.run(1)
    driver.start(3, prompt_of(2, 90))
    rows = [
        Rows(0, 5, driver.running[0].tokens[5:], outputs=1),
        Rows(3, 0, driver.running[3].tokens[:33], outputs=0),
    ]
    result = driver.backend.decode(StepPlan(rows))
    assert result.code is DecodeCode.OK
    assert len(result.samples) == 1


def test_a_cell_stays_as_long_as_somebody_holds_it_and_is_taken_once(make_driver):
    driver = make_driver(SCRIPTED, slots=2, kv_cells=256)
    driver.start(0, prompt_of(1, 200))
    driver.run(1)
    driver.start(1, [*prompt_of(1, 200)[:192], *prompt_of(2, 48)], share=(0, 192))
    driver.run(1)
    held = driver.backend.cells(0) + driver.backend.cells(1)
    assert held - 192 <= 256 < held
    driver.cancel(0)
    driver.run(8)
    assert len(driver.running[1].said) == 9


@pytest.mark.parametrize(
    "wrong", [(0, 0, 8), (0, 1, 0), (0, 1, 21), (1, 0, 8), (0, 9, 8), (-1, 1, 8)]
)
def test_what_cannot_be_shared_or_copied_is_refused_before_llama_cpp_asserts(make_driver, wrong):
    for layout in ("unified", "split"):
        driver = make_driver(SCRIPTED, layout=layout)
        driver.start(0, prompt_of(1, 20))
        driver.run(1)
        with pytest.raises(ValueError, match="cannot have"):
            driver.backend.copy(*wrong)
