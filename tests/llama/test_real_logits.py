"""Random weights, whose logits tell every rounding: how far the backend's ways of computing differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.core.events import SampledLogprobs
from server.engine.plan import DecodeCode, Rows, StepPlan
from server.llama.params import LlamaParams
from tests.llama.conftest import kind_of, layouts
from tests.llama.driving import Driver, prompt_of
from tests.models import ModelSpec

pytestmark = pytest.mark.native

PROMPTS = [prompt_of(seed, 64) for seed in range(4)]


def fresh(driver: Driver, *, keep: int = 0) -> Driver:
    for slot in range(4):
        driver.backend.truncate(slot, keep if slot == 0 else 0)
    return driver


def open_all(driver: Driver) -> None:
    for slot, prompt in enumerate(PROMPTS):
        driver.start(slot, prompt)


def test_logits_are_finite_and_varied(make_driver):
    driver = make_driver()
    open_all(driver)
    logits = driver.prefill_logits(PROMPTS[:1])
    assert np.isfinite(logits).all()
    assert logits.std() > 0.5


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@layouts
def test_chunks_and_reuse_stay_near_llama_cpps_own_differences(make_driver, layout, kv_type):
    driver = make_driver(**kind_of(layout, kv_type))
    open_all(driver)
    single = driver.prefill_logits(PROMPTS[:1])
    # llama.cpp's own: the last 24 tokens as decoding computes them, in calls of 1 and of 4 rows.
    decoding = range(40, 64)
    by_one = fresh(driver).prefill_logits(PROMPTS[:1], decoding)
    by_four = fresh(driver).prefill_logits(PROMPTS, decoding)
    own = max(float(np.abs(single - by_one).max()), float(np.abs(single - by_four).max()))
    assert own < 0.1

    for cuts in ([8], [8, 16, 24], [32], [56], [5, 17], [63]):
        chunked = fresh(driver).prefill_logits(PROMPTS[:1], cuts)
        assert np.abs(single - chunked).max() <= 2 * own + 1e-6, cuts
    for keep in (8, 32, 56, 37, 63):
        fresh(driver).prefill_logits(PROMPTS[:1])
        reused = fresh(driver, keep=keep).prefill_logits(PROMPTS[:1])
        assert np.abs(single - reused).max() <= 2 * own + 1e-6, keep
        if (
            layout["layout"] == "unified"
        ):  # the same cells, held by the slot that computed them, too
            fresh(driver).prefill_logits([PROMPTS[1][:20], PROMPTS[0]])
            driver.backend.truncate(0, 0)
            driver.backend.copy(1, 0, keep)
            shared = driver.prefill_logits(PROMPTS[:1])
            assert np.abs(single - shared).max() <= 2 * own + 1e-6, keep


def distributions(driver: Driver, slots: Sequence[int], cuts: Sequence[int], *, keep: int = 0):
    """Compute prompt i in slot i, cut alike, then four tokens; every log-probability seen."""
    for slot in slots:
        driver.start(slot, PROMPTS[slot], keep=keep, logprobs=1000)
    seen: dict[int, list[SampledLogprobs | None]] = {slot: [] for slot in slots}
    edges = [cut for cut in cuts if cut > keep] + [64, 65, 66, 67]
    for edge in edges:
        plan = []
        for slot in slots:
            held = driver.backend.cells(slot)
            tokens = driver.running[slot].tokens
            plan.append(Rows(slot, held, tokens[held:edge], outputs=int(edge >= 64)))
        result = driver.backend.decode(StepPlan(plan))
        assert result.code is DecodeCode.OK
        for slot, (sample,) in zip(slots, result.samples, strict=edge >= 64):
            driver.running[slot].tokens.append(sample.token)
            seen[slot].append(sample.logprobs)
    for slot in slots:
        driver.backend.close(slot)
    return seen


def test_deterministic_mode_gives_the_same_bits_whatever_runs_beside(make_driver):
    driver = make_driver(kv_type="q8_0", n_ubatch=1)
    alone = {slot: distributions(driver, [slot], [])[slot] for slot in range(4)}
    for cuts in ([], [8], [13, 40]):
        assert distributions(driver, [0, 1, 2, 3], cuts) == alone, cuts
        assert distributions(driver, [2], cuts) == {2: alone[2]}, cuts
    for keep in (1, 24, 63):
        distributions(driver, [0, 1, 2, 3], [10, 20, 30])
        assert distributions(driver, [1, 3], [], keep=keep) == {1: alone[1], 3: alone[3]}, keep


def test_reuse_in_a_unified_pool_changes_bits_which_is_why_deterministic_mode_is_split(make_driver):
    driver = make_driver(kv_type="q8_0", n_ubatch=1, layout="unified")
    open_all(driver)
    single = driver.prefill_logits(PROMPTS[:1])
    fresh(driver).prefill_logits(PROMPTS, range(1, 64))
    # New cells fill the gaps that the neighbours left: below the kept ones, so sums change order.
    reused = fresh(driver, keep=24).prefill_logits(PROMPTS[:1])
    assert 0 < np.abs(reused - single).max() < 1e-3


def test_quantized_cache_cut_at_multiples_of_eight_gives_the_same_bits(make_driver):
    driver = make_driver(kv_type="q8_0")
    open_all(driver)
    single = driver.prefill_logits(PROMPTS[:1])
    for cuts in ([8], [16, 40], [56]):
        assert np.array_equal(fresh(driver).prefill_logits(PROMPTS[:1], cuts), single), cuts


def test_reuse_is_aligned_where_a_promise_hangs_on_it():
    def align(**fields: Any) -> int:
        return LlamaParams(Path("m.gguf"), **fields).reuse_align

    assert (align(kv_type="f16"), align(kv_type="q4_0")) == (1, 1)
    assert (align(kv_type="q8_0"), align(kv_type="q8_0", kv_type_v="f16")) == (8, 1)
    assert align(kv_type="q8_0", n_ubatch=1) == 1, "each row by itself"


def test_deterministic_mode_says_the_same_beside_others(make_driver):
    driver = make_driver(kv_type="q8_0", n_ubatch=1)
    alone = [driver.alone(prompt, 24, slot) for slot, prompt in enumerate(PROMPTS)]
    batched = [driver.start(slot, prompt) for slot, prompt in enumerate(PROMPTS)]
    while any(len(sequence.said) < 24 for sequence in batched):
        driver.run(1, chunk=10)
    assert [sequence.said[:24] for sequence in batched] == alone


def test_same_prompt_and_seed_alone_say_the_same_after_a_reload(make_driver):
    first = make_driver(ModelSpec()).alone(PROMPTS[0], 24)
    assert make_driver(ModelSpec()).alone(PROMPTS[0], 24) == first
