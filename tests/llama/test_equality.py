"""Sequences of a scripted model say the same whatever runs beside them and however computed."""

from __future__ import annotations

import pytest

from tests.llama.conftest import SCRIPTED
from tests.llama.driving import prompt_of
from tests.models import follow

pytestmark = pytest.mark.native

PROMPTS = [prompt_of(seed, length) for seed, length in ((1, 5), (2, 40), (3, 17), (4, 64))]
WANTED = [follow(SCRIPTED, prompt[-1], 12) for prompt in PROMPTS]
KINDS = [
    {"layout": "unified", "kv_type": "f16"},
    {"layout": "split", "kv_type": "f16"},
    {"layout": "unified", "kv_type": "q8_0"},
    {"layout": "split", "kv_type": "q4_0"},
    {"layout": "unified", "kv_type": "f32", "flash_attention": "off"},
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
@pytest.mark.parametrize("layout", ["unified", "split"])
def test_chunked_prefill_beside_decoding_equals_alone(make_driver, layout, chunk):
    driver = make_driver(SCRIPTED, layout=layout)
    sequences = [driver.start(slot, prompt) for slot, prompt in enumerate(PROMPTS)]
    while any(len(sequence.said) < 12 for sequence in sequences):
        driver.run(1, chunk)
    assert [sequence.said[:12] for sequence in sequences] == WANTED


@pytest.mark.parametrize("layout", ["unified", "split"])
@pytest.mark.parametrize("keep", [1, 8, 40, 63])
def test_reused_prefix_equals_alone(make_driver, layout, keep):
    driver = make_driver(SCRIPTED, layout=layout)
    driver.start(2, PROMPTS[3])
    driver.run(5)
    other = [*PROMPTS[3][:keep], 99, 98]
    sequence = driver.start(2, other, keep=keep)
    driver.run(4)
    assert sequence.said == follow(SCRIPTED, 98, 4)


@pytest.mark.parametrize("layout", ["unified", "split"])
def test_neighbours_of_a_cancelled_sequence_go_on(make_driver, layout):
    driver = make_driver(SCRIPTED, layout=layout)
    sequences = [driver.start(slot, prompt) for slot, prompt in enumerate(PROMPTS)]
    driver.run(4)
    driver.cancel(1)
    driver.run(3)
    late = driver.start(1, PROMPTS[1])
    driver.run(5)
    assert [sequences[slot].said for slot in (0, 2, 3)] == [WANTED[slot] for slot in (0, 2, 3)]
    assert late.said == WANTED[1][:5]
