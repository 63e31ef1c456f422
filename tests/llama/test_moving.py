"""Cells that are moved down: the same bits, and the model of their places agrees with llama.cpp's."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import numpy as np
import pytest

from server.engine.host_memory import HostBudget
from server.engine.plan import Rows, StepPlan
from tests.factories import LoopHarness, make_limits, make_request
from tests.llama.conftest import SCRIPTED
from tests.llama.driving import GREEDY, prompt_of
from tests.models import follow

pytestmark = pytest.mark.native

LIMITS = make_limits(
    slots=4,
    n_ctx=1024,
    max_rows=256,
    prefill_rows=256,
    prefill_rows_decoding=256,
    cold_steps=8,
    warm_cells=0,
)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_logits_after_a_move_are_those_before_bit_for_bit(make_driver, kv_type) -> None:
    backend = (driver := make_driver(layout="unified", kv_type=kv_type)).backend
    block, prompt = prompt_of(1, 150), prompt_of(2, 64)
    for slot, tokens in ((0, block), (1, prompt)):
        driver.start(slot, tokens)
        backend.decode(StepPlan([Rows(slot, 0, tokens[:-1], outputs=0)]))

    def logits() -> np.ndarray:
        backend.decode(StepPlan([Rows(1, 63, prompt[63:], outputs=1)]))
        found = driver.logits(0)
        backend.truncate(1, 63)
        return found

    before = logits()
    backend.truncate(0, 0)
    state = backend.save(1, 63)
    backend.truncate(1, 0)
    assert backend.restore(1, state) == 63
    assert np.array_equal(logits(), before)


def bursts(harness: LoopHarness) -> tuple[str, list[int]]:
    """Documents, and a question that goes on when they have ended; return its id and prompt."""
    for seed in range(3):
        harness.submit(make_request(prompt_of(seed, 900), 20, sampling=GREEDY, ignore_eos=True))
    harness.step(14)
    prompt = prompt_of(7, 40)
    request = make_request(prompt, 150, sampling=GREEDY, ignore_eos=True)
    harness.submit(request)
    return request.request_id, prompt


def test_a_stream_that_is_moved_goes_on_with_its_text(make_driver) -> None:
    driver = make_driver(SCRIPTED, layout="unified", n_ctx=1024)
    harness = LoopHarness(LIMITS, real=driver.backend, host=HostBudget(2**28))
    request, prompt = bursts(harness)
    harness.run()
    assert harness.scheduler.counters["moved_cells"] > 0
    said = [token for event in harness.events[request] for token in getattr(event, "token_ids", ())]
    assert said == follow(SCRIPTED, prompt[-1], 150)


def test_the_model_of_cells_agrees_with_llama_cpp(make_driver, monkeypatch, caplog) -> None:
    """llama.cpp logs, before it looks for cells, the end of the highest one in use and how many are."""
    monkeypatch.setenv("LLAMA_KV_CACHE_DEBUG", "1")
    driver = make_driver(layout="unified", n_ctx=1024)
    harness = LoopHarness(LIMITS, real=driver.backend, host=HostBudget(2**28))
    moving = harness.loop.edits.moving
    assert moving is not None
    decode: Callable[..., object] = driver.backend.decode
    copy, copies = driver.backend.copy, []

    def counted(source: int, slot: int, cells: int) -> None:
        copies.append(cells)
        copy(source, slot, cells)

    driver.backend.copy = counted  # type: ignore[method-assign]
    compared = []

    def watched(plan: StepPlan) -> object:
        ends = moving.places.ends()
        expected = (ends[0][0] if ends else 0, moving.places.used)
        caplog.clear()
        result = decode(plan)
        found = [
            (int(match[1]), int(match[2]))
            for record in caplog.records
            if (match := re.search(r"find_slot: .*n = +(\d+), used = +(\d+)", record.message))
        ]
        assert found[0] == expected
        compared.append(expected)
        return result

    driver.backend.decode = watched  # type: ignore[method-assign]
    with caplog.at_level(logging.DEBUG, logger="onegpu.llama_cpp"):
        bursts(harness)
        # A conversation that shares its beginning with the first document, and one that is aborted.
        harness.step(4)
        harness.submit(make_request([*prompt_of(0, 600), 3, 4, 5], 20, ignore_eos=True))
        gone = make_request(prompt_of(9, 500), 20, ignore_eos=True)
        harness.submit(gone)
        harness.step(6)
        harness.loop.abort(gone.request_id)
        harness.run()
        # What was parked comes back, and a second one shares it while the first goes on.
        for tail in ([3, 4], [5, 6]):
            harness.submit(make_request([*prompt_of(1, 890), *tail], 20, ignore_eos=True))
            harness.step(6)
        # They end, and one of them has to go for others.
        for seed in (5, 6, 8):
            harness.submit(make_request(prompt_of(seed, 100), 30, ignore_eos=True))
        harness.run()
    counters = harness.scheduler.counters
    assert len(compared) > 100
    assert counters["moved_cells"] > 0
    assert counters["parked"] > 0
    assert counters["restored"] > 0
    assert copies, "cells had two holders"
    assert max(end - used for end, used in compared) > 1000, "gaps were there"
