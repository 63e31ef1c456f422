"""Answers by a grammar and reasoning by a budget, drawn from real logits of random weights."""

from __future__ import annotations

import ctypes
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import numpy as np
import pytest

from server.core.errors import GenerationFailed, InvalidRequest
from server.core.request import Constraint, GenerationRequest, SamplingParams, Thinking
from server.engine.grammar import GrammarKind, GrammarSource
from server.engine.plan import DecodeCode, Rows, StepPlan, StepResult
from server.llama.backend import LlamaBackend
from server.llama.guide import Guide, Masks, make_guide
from server.llama.loading import load_backend
from server.llama.params import LlamaParams
from tests.fakes import FakeTokenizer
from tests.llama.conftest import SCRIPTED
from tests.llama.driving import GREEDY, Driver, Running, prompt_of
from tests.models import (
    ModelSpec,
    _add_shape,
    follow,
    tensors_of,
    vocabulary,
)
from tests.models import (
    finish as finish_file,
)

pytestmark = pytest.mark.native

SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 6},
        "kinds": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["count", "name", "kinds"],
    "additionalProperties": False,
}
"""Whatever fits has an end: within some 100 tokens."""
SAMPLERS = [
    GREEDY,
    SamplingParams(temperature=1.5, seed=1),
    SamplingParams(temperature=1.5, top_p=0.9, min_p=0.02, seed=2),
    SamplingParams(temperature=1.5, top_k=40, top_p=0.95, seed=3),
    SamplingParams(temperature=1.5, top_k=1, seed=4),
    SamplingParams(temperature=1.5, repeat_penalty=1.3, presence_penalty=0.5, seed=5),
    SamplingParams(temperature=1.5, dry_multiplier=0.8, dry_allowed_length=1, seed=6),
    SamplingParams(temperature=1.5, mirostat=1, seed=7),
    SamplingParams(temperature=1.5, mirostat=2, seed=8),
    SamplingParams(temperature=1.5, typical_p=0.8, seed=9),
    SamplingParams(temperature=1.5, top_n_sigma=1.0, seed=10),
    SamplingParams(temperature=1.5, xtc_probability=0.5, xtc_threshold=0.01, seed=11),
    SamplingParams(temperature=1.5, dynatemp_range=0.5, seed=12),
    SamplingParams(temperature=1.5, seed=13, logit_bias={120: 5.0, 121: -math.inf}),
]
HOT = SamplingParams(temperature=1.5, seed=21)
PROMPT = prompt_of(1, 20)


def constraint(tokenizer: Any, kind: GrammarKind, text: str, **fields: Any) -> Constraint:
    return Constraint(tokenizer.grammars.compile(GrammarSource(kind, text)), **fields)


def json_constraint(driver: Driver) -> Constraint:
    return constraint(driver.backend.tokenizer, "json_schema", json.dumps(SCHEMA))


def thinking(driver: Driver, **fields: Any) -> Thinking:
    markers = driver.backend.tokenizer.marker_tokens
    return Thinking(markers["<think>"], markers["</think>"], **fields)


def finish(driver: Driver, *slots: int, most: int = 200) -> list[list[int]]:
    """Step until each of `slots` has drawn an end token; return what came before."""
    eog = driver.backend.tokenizer.eog
    said: dict[int, list[int]] = {}
    for _ in range(most):
        assert driver.step() is DecodeCode.OK
        for slot in set(slots) - said.keys():
            sequence = driver.running[slot]
            error = sequence.samples[-1].error
            assert error is None, error
            if sequence.said[-1] in eog:
                said[slot] = sequence.said[:-1]
                driver.cancel(slot)
        if len(said) == len(slots):
            return [said[slot] for slot in slots]
    raise AssertionError(f"no end within {most} tokens: {sorted(set(slots) - said.keys())}")


def text_of(driver: Driver, tokens: list[int]) -> str:
    return driver.backend.tokenizer.decode(tokens).decode()


def check(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("sampling", SAMPLERS, ids=lambda sampling: str(sampling.seed))
def test_whatever_draws_draws_what_fits(make_driver, sampling):
    driver = make_driver()
    wanted = json_constraint(driver)
    for seed in range(3):
        driver.start(0, prompt_of(seed, 20), sampling, constraint=wanted)
        (said,) = finish(driver, 0)
        check(text_of(driver, said))


def write_sentencepiece(path: Path) -> Path:
    """Write a random model whose vocabulary is SentencePiece's: bytes beside pieces, spaces as ▁."""
    spec = ModelSpec(padding=100)
    size = len(vocabulary(spec).texts)
    pieces = [*'{}[]":,0123456789abcnmeoutkidsxy', "▁", "▁[", '",', '":', "▁{", "name", "count"]
    texts = [f"<0x{byte:02X}>" for byte in range(256)] + ["<unk>", "<s>", "</s>", *pieces]
    texts += [f"▁w{number}" for number in range(size - len(texts))]
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    writer = gguf.GGUFWriter(path, spec.architecture)
    _add_shape(writer, spec)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_token_types([6 if at < 256 else kinds.get(text, 1) for at, text in enumerate(texts)])
    writer.add_bos_token_id(texts.index("<s>"))
    writer.add_eos_token_id(texts.index("</s>"))
    writer.add_unk_token_id(texts.index("<unk>"))
    for name, tensor in tensors_of(spec):
        writer.add_tensor(name, tensor)
    finish_file(writer)
    return path


def test_bytes_and_pieces_make_whole_characters(tmp_path):
    path = write_sentencepiece(tmp_path / "pieces.gguf")
    params = LlamaParams(path, slots=1, n_ctx=512, threads=1, warmup=False)
    backend = load_backend(params)(lambda _fraction: None)
    assert isinstance(backend, LlamaBackend)
    try:
        driver = Driver(backend)
        wanted = json_constraint(driver)
        for seed in range(8):
            hot = SamplingParams(temperature=1.5, seed=seed)
            driver.start(0, prompt_of(seed, 20), hot, constraint=wanted)
            (said,) = finish(driver, 0)
            check(text_of(driver, said))
    finally:
        backend.shutdown()


def test_choices_share_a_grammar_and_go_their_own_ways(make_driver):
    driver = make_driver()
    wanted = json_constraint(driver)
    for slot in range(4):
        hot = SamplingParams(temperature=1.5, seed=slot)
        driver.start(slot, PROMPT, hot, constraint=wanted)
    texts = [text_of(driver, said) for said in finish(driver, 0, 1, 2, 3)]
    for text in texts:
        check(text)
    assert len(set(texts)) == 4


@pytest.mark.parametrize("sampling", [GREEDY, HOT, SamplingParams(top_k=20, seed=3)])
def test_neighbours_do_not_notice(make_driver, sampling):
    driver = make_driver()
    runs = []
    for wanted in (None, json_constraint(driver)):
        neighbour = driver.start(0, PROMPT, sampling, logprobs=2, ignore_eos=True)
        driver.start(1, PROMPT, HOT, constraint=wanted)
        third = driver.start(2, prompt_of(3, 20), sampling, ignore_eos=True)
        # Rows of a call look alike to llama.cpp, whatever is drawn from them: only slot 1's tokens differ.
        driver.run(1)
        runs.append((neighbour.samples, third.samples))
        for slot in range(3):
            driver.cancel(slot)
    assert runs[0] == runs[1]


def test_neighbours_say_what_they_would_say_alone(make_driver):
    """Of a scripted model, whose logits do not depend on what is computed beside."""
    driver = make_driver(SCRIPTED)
    wanted = json_constraint(driver)
    sampling = SamplingParams(temperature=9.0, seed=5)
    alone = driver.alone(PROMPT, 60, sampling=sampling, ignore_eos=True)
    neighbour = driver.start(0, PROMPT, sampling, ignore_eos=True)
    driver.start(1, PROMPT, HOT, constraint=wanted)
    driver.start(2, PROMPT, HOT, constraint=wanted)
    driver.run(60)
    assert neighbour.said == alone


@pytest.mark.parametrize("sampling", [GREEDY, HOT, SamplingParams(top_k=20, seed=3)])
def test_log_probabilities_are_the_models_own(make_driver, sampling):
    driver = make_driver()
    sequence = driver.start(0, PROMPT, sampling, logprobs=5, constraint=json_constraint(driver))
    plain = driver.start(1, PROMPT, GREEDY, logprobs=5)
    driver.run(1)
    guided, free = sequence.samples[0].logprobs, plain.samples[0].logprobs
    assert guided is not None
    assert free is not None
    # "{" is all that the grammar allows, and not what the model would have said.
    assert text_of(driver, sequence.said)[0] == "{"
    assert [one.token_id for one in guided.top] == [one.token_id for one in free.top]
    assert guided.top[0].logprob == pytest.approx(free.top[0].logprob, abs=1e-3)
    assert guided.logprob < guided.top[0].logprob


@pytest.mark.parametrize("likely", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_nobody_reasons_who_would_not_have_begun_with_it(make_driver, likely, seed):
    """Beside a grammar's few tokens the marker may be the likeliest; what counts is the whole vocabulary."""
    driver = make_driver()
    markers = driver.backend.tokenizer.marker_tokens
    start, end = markers["<think>"], markers["</think>"]
    # Far likelier than the brace in both cases, and the likeliest of all in one.
    bias = {start: 30.0} | ({} if likely else {10: 60.0})
    sampling = SamplingParams(temperature=1.5, seed=seed, logit_bias=bias)
    driver.start(
        0,
        PROMPT,
        sampling,
        thinking=Thinking(start, end, budget=3, closing=(end,)),
        constraint=json_constraint(driver),
    )
    (said,) = finish(driver, 0, most=230)
    assert (said[0] == start) is likely


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("budget", [None, 0, 1, 7])
def test_reasoning_comes_first_and_the_answer_fits(make_driver, inside, budget):
    driver = make_driver()
    markers = driver.backend.tokenizer.marker_tokens
    start, end = markers["<think>"], markers["</think>"]
    closing = (*driver.backend.tokenizer.encode("so it is.\n"), end, 10, 10)
    # By chance nobody begins to reason, and nobody comes to an end.
    bias = {start: 50.0, end: 43.0} if budget is None else {start: 50.0}
    sampling = SamplingParams(temperature=1.5, seed=1, logit_bias=bias)
    driver.start(
        0,
        PROMPT,
        sampling,
        thinking=Thinking(start, end, inside, budget, closing),
        constraint=json_constraint(driver),
    )
    (said,) = finish(driver, 0, most=230)
    if not inside and budget == 0:
        assert end not in said
        check(text_of(driver, said))
        return
    if not inside:
        assert said.pop(0) == start
    at = said.index(end)
    if budget is not None and at >= budget + closing.index(end):
        assert tuple(said[budget : budget + len(closing)]) == closing
        check(text_of(driver, said[budget + len(closing) :]))
    else:
        assert budget is None or at <= budget
        check(text_of(driver, said[at + 1 :]))


def test_a_budget_is_spent_to_the_last_token(make_driver):
    driver = make_driver(SCRIPTED)
    reasoning = thinking(driver, inside=True, budget=5, closing=(*b"ok", 258, 259))
    sequence = driver.start(0, PROMPT, thinking=reasoning, ignore_eos=True)
    driver.run(11)
    free = follow(SCRIPTED, PROMPT[-1], 5)
    assert reasoning.end not in free
    assert sequence.said == [*free, *b"ok", 258, 259, *follow(SCRIPTED, 259, 2)]


def test_without_a_closing_the_end_marker_closes(make_driver):
    driver = make_driver(SCRIPTED)
    reasoning = thinking(driver, inside=True, budget=2)
    sequence = driver.start(0, PROMPT, thinking=reasoning)
    driver.run(3)
    assert sequence.said == [*follow(SCRIPTED, PROMPT[-1], 2), reasoning.end]


def test_reasoning_does_not_end_the_answer_that_was_asked_for(make_driver):
    driver = make_driver()
    (eog, *_) = driver.backend.tokenizer.eog
    reasoning = thinking(driver, inside=True, budget=20)
    push = SamplingParams(temperature=1.0, seed=1, logit_bias={eog: 50.0})
    wanted = json_constraint(driver)
    driver.start(0, PROMPT, push, thinking=reasoning, constraint=wanted)
    (said,) = finish(driver, 0)
    check(text_of(driver, said[said.index(reasoning.end) + 1 :]))


CALL = 'start: <tool_call> "{" /[ab]{2,3}/ "}" </tool_call>'


@pytest.mark.parametrize("once", [False, True])
def test_a_call_by_its_grammar_between_free_text(make_driver, once):
    driver = make_driver()
    tokenizer = driver.backend.tokenizer
    opened, closed = tokenizer.marker_tokens["<tool_call>"], tokenizer.marker_tokens["</tool_call>"]
    wanted = constraint(tokenizer, "lark", CALL, trigger=opened, once=once)
    # With end tokens forbidden but where nothing else may come.
    bias = dict.fromkeys(tokenizer.eog, -20.0) | {opened: 3.0}
    sampling = SamplingParams(temperature=1.5, seed=4, logit_bias=bias)
    sequence = driver.start(0, PROMPT, sampling, constraint=wanted)
    calls = free = 0
    for _ in range(200):
        driver.run(1)
        assert sequence.samples[-1].error is None
        if sequence.said[-1] in tokenizer.eog:
            break
    said = sequence.said
    while opened in said:
        at = said.index(opened)
        free += at
        call = said[at:]
        if closed not in call:
            assert not once
            break
        until = call.index(closed)
        inner = text_of(driver, call[1:until])
        assert inner[0] + inner[-1] == "{}"
        assert set(inner[1:-1]) <= set("ab")
        assert 4 <= len(inner) <= 5
        calls += 1
        said = call[until + 1 :]
    if once:
        assert (calls, said) == (1, [sequence.said[-1]])
        assert said[0] in tokenizer.eog
    else:
        assert calls > 1
        assert free > 0


def test_a_trigger_within_reasoning_is_only_a_word(make_driver):
    driver = make_driver()
    tokenizer = driver.backend.tokenizer
    opened = tokenizer.marker_tokens["<tool_call>"]
    reasoning = thinking(driver, inside=True, budget=6, closing=())
    wanted = constraint(tokenizer, "lark", CALL, trigger=opened)
    sampling = SamplingParams(temperature=0.0, logit_bias={opened: 99.0})
    sequence = driver.start(0, PROMPT, sampling, thinking=reasoning, constraint=wanted)
    driver.run(9)
    assert sequence.said[:8] == [*[opened] * 6, reasoning.end, opened]
    assert text_of(driver, sequence.said[8:]) == "{"


def test_one_line_break_may_follow_reasoning_that_came_to_its_own_end(make_driver):
    driver = make_driver()
    reasoning = thinking(driver, inside=True)
    sampling = SamplingParams(temperature=0.0, logit_bias={reasoning.end: 50.0, 10: 99.0})
    wanted = json_constraint(driver)
    bias = SamplingParams(temperature=0.0, logit_bias={reasoning.end: 99.0, 10: 50.0})
    sequence = driver.start(0, PROMPT, bias, thinking=reasoning, constraint=wanted)
    driver.run(3)
    assert sequence.said[:2] == [reasoning.end, 10]
    assert text_of(driver, sequence.said[2:])[0] == "{"
    # Not without reasoning, and not after a closing.
    for thought, before in ((None, 0), (thinking(driver, inside=True, budget=0), 1)):
        sequence = driver.start(1, PROMPT, sampling, thinking=thought, constraint=wanted)
        driver.run(2)
        assert text_of(driver, sequence.said[before:])[0] == "{"


def test_a_guide_that_fails_ends_its_request_alone(make_driver):
    driver = make_driver(SCRIPTED)
    neighbour = driver.start(0, PROMPT)
    broken = driver.start(1, PROMPT, constraint=json_constraint(driver))
    driver.run(1)
    broken.tokens[-1] = 3  # not what was drawn, and nothing that the grammar knows
    driver.run(1)
    error = broken.samples[-1].error
    assert isinstance(error, GenerationFailed)
    assert "output form" in error.message
    assert "<state>" not in error.message
    driver.cancel(1)
    driver.run(3)
    assert neighbour.said == follow(SCRIPTED, PROMPT[-1], 5)


def test_what_is_allowed_by_nobody_is_an_error(make_driver):
    driver = make_driver()
    wanted = constraint(driver.backend.tokenizer, "regex", "a+")
    sampling = SamplingParams(temperature=1.0, seed=1, logit_bias={97: -math.inf})
    sequence = driver.start(0, PROMPT, sampling, constraint=wanted)
    driver.run(1)
    error = sequence.samples[0].error
    assert isinstance(error, GenerationFailed)
    assert "No token was allowed" in error.message


def test_a_grammar_of_another_kind_is_refused(make_driver):
    driver = make_driver(SCRIPTED)
    with pytest.raises(ValueError, match="no grammar of this backend"):
        driver.start(0, PROMPT, constraint=Constraint("a+"))


# Calls that are repeated, drafts, pauses


@pytest.mark.parametrize("failing", [3, 6, 11])
def test_a_call_that_is_repeated_keeps_the_answer_whole(make_driver, failing):
    """Several groups per step: those before the one that fails are drawn from, and again when it is repeated."""
    driver = make_driver(layout="split", flash_attention="off")
    backend = driver.backend
    wanted = json_constraint(driver)
    backend._grouped = lambda rows: [[each] for each in rows]
    for slot in range(3):
        hot = SamplingParams(temperature=1.5, seed=slot)
        driver.start(slot, PROMPT, hot, constraint=wanted)
    real, calls = backend._call, 0

    def fail_third(rows: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 * failing:
            held = {each.slot: backend._resync(each) for each in rows}
            return StepResult(DecodeCode.FAILED, cells=held)
        return real(rows)

    backend._call = fail_third
    for _ in range(failing - 1):
        assert driver.step() is DecodeCode.OK
    assert driver.step() is DecodeCode.FAILED
    for said in finish(driver, 0, 1, 2):
        check(text_of(driver, said))


def test_a_draft_that_was_taken_and_then_lost_does_not_count():
    tokenizer = FakeTokenizer()
    guide = make(tokenizer, constraint(tokenizer, "regex", "abc|abd|xyz"))
    guide.take(4, 1)  # the prompt's last token
    guide.take(5, ord("a"))
    guide.take(6, ord("b"))
    assert allowed(guide, tokenizer) == {ord("c"), ord("d")}
    guide.take(6, ord("b"))
    guide.take(5, ord("a"))
    assert allowed(guide, tokenizer) == {ord("b")}
    guide.take(5, ord("x"))
    assert allowed(guide, tokenizer) == {ord("y")}
    guide.take(4, 1)
    assert allowed(guide, tokenizer) == {ord("a"), ord("x")}
    with pytest.raises(GenerationFailed, match="came without"):
        guide.take(6, ord("a"))


def test_a_draft_changes_nothing(make_driver):
    driver = make_driver(draft_rows=8, n_ctx=512)
    wanted = json_constraint(driver)
    driver.start(0, PROMPT, GREEDY, constraint=wanted)
    (plain,) = finish(driver, 0)
    drafted = driver.start(0, PROMPT, GREEDY, constraint=wanted)
    driver.run(1)
    eog = driver.backend.tokenizer.eog
    while drafted.said[-1] not in eog:
        count = len(drafted.said)
        draft = [*plain[count : count + count % 4], 3, 7][:7]
        held = driver.backend.cells(0)
        row = Rows(0, held, [*drafted.tokens[held:], *draft], outputs=1 + len(draft))
        (samples,) = driver.backend.decode(StepPlan([row])).samples
        assert all(sample.error is None for sample in samples)
        drafted.tokens += [sample.token for sample in samples]
    check(text_of(driver, drafted.said[:-1]))


def test_set_aside_and_resumed_elsewhere(make_driver):
    driver = make_driver(SCRIPTED)
    wanted = json_constraint(driver)
    hot = SamplingParams(temperature=9.0, seed=8)
    reasoning = thinking(driver, inside=True, budget=6)
    driver.start(0, PROMPT, hot, constraint=wanted, thinking=reasoning)
    (whole,) = finish(driver, 0)
    for moment in (3, 8, 12):
        first = driver.start(0, PROMPT, hot, constraint=wanted, thinking=reasoning)
        driver.run(moment)
        driver.backend.set_aside(0, "r0")
        del driver.running[0]
        driver.backend.truncate(0, 0)
        request = GenerationRequest("r0", tuple(PROMPT), 1000, hot)
        driver.backend.open(2, request)
        driver.running[2] = Running(first.tokens, first.n_prompt)
        driver.running[2].samples = first.samples
        (said,) = finish(driver, 2)
        assert said == whole


# A guide alone


def make(tokenizer: Any, wanted: Constraint | None, thought: Thinking | None = None) -> Guide:
    request = GenerationRequest("r", (1,) * 5, 100, thinking=thought, constraint=wanted)
    guide = make_guide(Masks(tokenizer), request)
    assert guide is not None
    return guide


def allowed(guide: Guide, tokenizer: Any) -> set[int]:
    logits = np.zeros(tokenizer.n_vocab, np.float32)
    if guide.restricts():
        guide.restrict(logits)
    return set(np.flatnonzero(np.isfinite(logits)).tolist())


def test_who_is_not_restricted_has_no_guide():
    tokenizer = FakeTokenizer()
    request = GenerationRequest("r", (1,), 5, thinking=Thinking(259, 260, inside=True))
    assert make_guide(Masks(tokenizer), request) is None


def test_the_first_token_may_open_reasoning():
    tokenizer = FakeTokenizer()
    wanted = constraint(tokenizer, "regex", "ab")
    everything = set(range(tokenizer.n_vocab))
    for budget, first in ((None, {97, 259}), (3, {97, 259}), (0, {97})):
        thought = Thinking(259, 260, budget=budget)
        assert allowed(make(tokenizer, wanted, thought), tokenizer) == first
    guide = make(tokenizer, wanted, Thinking(259, 260))
    guide.take(5, 97)
    assert allowed(guide, tokenizer) == {98}
    free = make(tokenizer, None, Thinking(259, 260, budget=0))
    assert allowed(free, tokenizer) == everything - {259}
    free.take(5, 97)
    assert allowed(free, tokenizer) == everything


@pytest.mark.parametrize(
    ("text", "fed", "left"),
    [
        ("ab", [10], {97}),
        ("ab", [97], {98}),
        ("\nab", [10], {97}),
        ("\n*ab", [10], {10, 97}),
        ("", [10], {256, 258}),
    ],
)
def test_a_line_break_behind_reasoning_is_the_grammars_if_it_wants_it(text, fed, left):
    tokenizer = FakeTokenizer()
    guide = make(tokenizer, constraint(tokenizer, "regex", text), Thinking(259, 260, inside=True))
    guide.take(5, 120)
    guide.take(6, 260)
    assert 10 in allowed(guide, tokenizer)
    for position, token in enumerate(fed, 7):
        guide.take(position, token)
    assert allowed(guide, tokenizer) == left
    with pytest.raises(GenerationFailed, match="cannot be followed"):
        guide.take(8, 120)


def test_a_line_break_is_wanted_by_the_grammar_or_not_there():
    tokenizer = FakeTokenizer()
    guide = make(tokenizer, constraint(tokenizer, "regex", "ab"))
    guide.take(5, 97)
    with pytest.raises(GenerationFailed, match="cannot be followed"):
        guide.take(6, 10)


def test_a_complete_answer_ends():
    tokenizer = FakeTokenizer()
    guide = make(tokenizer, constraint(tokenizer, "regex", "ab?"))
    guide.take(5, 97)
    assert allowed(guide, tokenizer) == {98, *tokenizer.eog}
    guide.take(6, 98)
    assert allowed(guide, tokenizer) == set(tokenizer.eog)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 265, 1000])
def test_a_mask_is_applied_to_the_last_token(size):
    class Sized(FakeTokenizer):
        n_vocab = 0

        def __init__(self) -> None:
            super().__init__()
            self.n_vocab = size
            self.pieces = [b"x"] * size

    class Matcher:
        """Allows every third token, and all the bits behind the last one."""

        def unsafe_compute_mask_ptr(self, address: int, count: int) -> None:
            bits = np.ones(8 * count, np.uint8)
            bits[:size] = np.arange(size) % 3 == 0
            packed = np.packbits(bits, bitorder="little").tobytes()
            assert len(packed) == count
            ctypes.memmove(address, packed, count)

    logits = np.full(size, 0.5, np.float32)
    Masks(Sized()).follow(Matcher(), logits, also=(size - 1,))  # type: ignore[arg-type]
    left = {token for token in range(size) if token % 3 == 0} | {size - 1}
    assert set(np.flatnonzero(logits == 0.5).tolist()) == left
    assert np.isneginf(logits).sum() == size - len(left)


def test_no_token_costs_memory_of_the_vocabularys_size():
    class Large(FakeTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.n_vocab = 150_000
            self.pieces = [b"x"] * 150_000

    class Matcher:
        def unsafe_compute_mask_ptr(self, _address: int, _count: int) -> None: ...

    masks, logits = Masks(Large()), np.zeros(150_000, np.float32)
    masks.follow(Matcher(), logits)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        masks.follow(Matcher(), logits)  # type: ignore[arg-type]
        masks.only([3], logits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16_000


def test_a_vocabulary_without_an_end_is_refused():
    class Endless(FakeTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.eog = frozenset()

    with pytest.raises(InvalidRequest, match="end"):
        Endless().grammars.compile(GrammarSource("regex", "a+", "guided_regex"))
