"""Sequences of a scripted model say the same whatever runs beside them and however computed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import LoopHarness, make_limits, make_request
from tests.llama.conftest import SCRIPTED, layouts
from tests.llama.driving import GREEDY, prompt_of
from tests.models import follow

pytestmark = pytest.mark.native

PROMPTS = [prompt_of(seed, length) for seed, length in ((1, 5), (2, 40), (3, 17), (4, 64))]
WANTED = [follow(SCRIPTED, prompt[-1], 12) for prompt in PROMPTS]
KINDS: list[dict[str, Any]] = [
    {"layout": "unified", "kv_type": "f16"},
    {"layout": "split", "kv_type": "f16"},
    {"layout": "split", "kv_type": "f16", "flash_attention": "off"},
    {"layout": "split", "kv_type": "bf16", "flash_attention": "off"},
    {"layout": "unified", "kv_type": "q8_0"},
    {"layout": "split", "kv_type": "q4_0"},
    {"layout": "unified", "kv_type": "f32", "flash_attention": "off"},
    {"layout": "split", "kv_type": "f16", "flash_attention": "off"},
    {"layout": "unified", "kv_type": "f16", "n_ubatch": 1},
    {"layout": "unified", "kv_type": "q8_0", "kv_type_v": "f16", "n_ubatch": 8},
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))


@kinds
def test_script_is_said_after_a_chat_prompt(make_driver, kind):
    driver = make_driver(SCRIPTED, **kind)
    vocab = driver.backend.tokenizer
    prompt = vocab.encode("<|im_start|>user\nhello world<|im_end|>\n", parse_special=True)
    said = driver.alone(prompt, 9)
    assert vocab.decode(said[:-1]) == "Hello there你<think> hm</think>!".encode()
    assert said[-1] in vocab.eog


@kinds
def test_batched_equals_alone(make_driver, kind):
    driver = make_driver(SCRIPTED, **kind)
    batched = [driver.start(slot, prompt) for slot, prompt in enumerate(PROMPTS)]
    driver.run(12)
    assert [sequence.said for sequence in batched] == WANTED
    for slot in range(4):
        driver.cancel(slot)
    assert [driver.alone(prompt, 12, slot) for slot, prompt in enumerate(PROMPTS)] == WANTED


@pytest.mark.parametrize("chunk", [1, 3, 8, 16, 63])
@layouts
def test_chunked_prefill_beside_decoding_equals_alone(make_driver, layout, chunk):
    driver = make_driver(SCRIPTED, **layout)
    sequences = [driver.start(slot, prompt) for slot, prompt in enumerate(PROMPTS)]
    while any(len(sequence.said) < 12 for sequence in sequences):
        driver.run(1, chunk)
    assert [sequence.said[:12] for sequence in sequences] == WANTED


def test_a_deep_sequence_beside_shallow_ones_has_calls_of_its_own(make_driver, monkeypatch):
    driver = make_driver(SCRIPTED, layout="split", flash_attention="off", n_ctx=2048)
    calls: list[list[int]] = []
    call = driver.backend._call

    def noted(rows):
        calls.append([one.slot for one in rows])
        return call(rows)

    monkeypatch.setattr(driver.backend, "_call", noted)
    deep = prompt_of(6, 1900)
    prompts = [PROMPTS[0], deep, PROMPTS[2], PROMPTS[3]]
    sequences = [driver.start(slot, prompt) for slot, prompt in enumerate(prompts)]
    driver.run(12, chunk=64)
    while len(sequences[1].said) < 5:
        driver.run(1, chunk=64)
    assert calls[-2:] == [[0, 2, 3], [1]]
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.said == follow(SCRIPTED, prompt[-1], len(sequence.said))


@layouts
@pytest.mark.parametrize("keep", [1, 8, 40, 63])
def test_reused_prefix_equals_alone(make_driver, layout, keep):
    driver = make_driver(SCRIPTED, **layout)
    driver.start(2, PROMPTS[3])
    driver.run(5)
    other = [*PROMPTS[3][:keep], 99, 98]
    sequence = driver.start(2, other, keep=keep)
    driver.run(4)
    assert sequence.said == follow(SCRIPTED, 98, 4)


@layouts
def test_neighbours_of_a_cancelled_sequence_go_on(make_driver, layout):
    driver = make_driver(SCRIPTED, **layout)
    sequences = [driver.start(slot, prompt) for slot, prompt in enumerate(PROMPTS)]
    driver.run(4)
    driver.cancel(1)
    driver.run(3)
    late = driver.start(1, PROMPTS[1])
    driver.run(5)
    assert [sequences[slot].said for slot in (0, 2, 3)] == [WANTED[slot] for slot in (0, 2, 3)]
    assert late.said == WANTED[1][:5]


LONG = prompt_of(5, 120)
UNIFIED = [kind for kind in KINDS if kind["layout"] == "unified"]


@pytest.mark.parametrize("kind", UNIFIED, ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("cells", [8, 64, 112])
def test_prefix_shared_with_those_who_compute_and_generate_equals_alone(make_driver, kind, cells):
    driver = make_driver(SCRIPTED, **kind)
    neighbour = driver.start(3, PROMPTS[0])
    source = driver.start(1, LONG)
    while (
        driver.backend.cells(1) < cells
    ):  # shared while the rest of the prompt is still to be computed
        driver.run(1, chunk=8)
    first = driver.start(0, [*LONG[:cells], 99, 98], share=(1, cells))
    driver.run(8, chunk=24)
    second = driver.start(2, [*LONG[:cells], 97, 96], share=(0, cells))
    driver.run(4)
    driver.cancel(1)  # who computed it goes, those who share it stay
    driver.run(8)
    assert source.said == follow(SCRIPTED, LONG[-1], len(source.said))
    assert first.said == follow(SCRIPTED, 98, len(first.said))
    assert second.said == follow(SCRIPTED, 96, len(second.said))
    assert neighbour.said == follow(SCRIPTED, PROMPTS[0][-1], len(neighbour.said))
    assert min(len(first.said), len(second.said)) >= 12


@layouts
@pytest.mark.parametrize("dies", [False, True])
def test_served_requests_with_one_system_prompt_equal_alone(make_driver, layout, dies):
    """The engine's own loop decides who shares with whom."""
    backend = make_driver(SCRIPTED, **layout, n_ctx=512).backend
    limits = make_limits(
        slots=4, n_ctx=512, max_rows=128, prefill_rows=64, prefill_rows_decoding=32
    )
    harness = LoopHarness(limits, real=backend)
    system = prompt_of(6, 300)
    requests = [
        make_request([*system, 90 + number], 12, sampling=GREEDY, ignore_eos=True)
        for number in range(7)
    ]
    for request in requests:
        harness.submit(request)
    harness.step(2)
    if dies:
        harness.loop.abort(requests.pop(0).request_id)
    harness.run()
    for request in requests:
        said = [t for e in harness.events[request.request_id] for t in getattr(e, "token_ids", ())]
        assert said == follow(SCRIPTED, request.prompt[-1], 12)
    counters = harness.scheduler.counters
    # 301 tokens each, of which 288 can be shared: 8 or more are computed again, cut at multiples of 8.
    assert counters["prefill_rows"] <= 301 + 6 * (301 - 288) + 8
    assert counters["prefix_waits"] >= 3
    assert (counters["copied_cells"] > 0) == (layout["layout"] == "split")
