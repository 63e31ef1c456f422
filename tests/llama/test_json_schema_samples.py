"""Answers drawn from random weights, hot, for every schema of the suite that is accepted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from server.chat.json_schema import check_schema
from server.core.errors import InvalidRequest
from server.core.request import Constraint, SamplingParams
from server.engine.grammar import GrammarSource
from server.engine.plan import DecodeCode
from tests.llama.conftest import MakeDriver
from tests.llama.driving import Driver, prompt_of
from tests.models import ModelSpec
from tests.schema_suite import Case, Judge, cases

pytestmark = [pytest.mark.native, pytest.mark.slow]

SAMPLES = 20
SLOTS = 16
MAX_TOKENS = 1024
JSON_PIECES = (
    b'",',
    b'"}',
    b'"]',
    b'": ',
    b'", "',
    b'"}}',
    b'."',
    b"},",
    b"],",
    b"]}",
    b'{"',
    b'["',
)
"""As every real vocabulary has: among bytes alone, one token of 270 ends a string."""
SPEC = ModelSpec(
    extra_pieces=JSON_PIECES,
    layers=1,
    embedding=64,
    heads=1,
    kv_heads=1,
    feed_forward=64,
)
KINDS = ("string", "array", "object", "number")


@dataclass
class Wanted:
    """One answer to be."""

    case: Case
    constraint: Constraint
    sampling: SamplingParams
    prompt: Sequence[int]
    text: str | None = None
    """None: it reached the limit."""


def wanted(driver: Driver, per_schema: int, kind: str | None = None) -> Iterator[Wanted]:
    """Answers for every schema of the suite that is accepted; `kind` demands that type besides."""
    grammars = driver.backend.tokenizer.grammars
    for number, case in enumerate(cases("draft2020-12")):
        schema = case.schema
        if kind is not None and isinstance(schema, dict):
            schema = schema | {"allOf": [*schema.get("allOf", []), {"type": kind}]}
        try:
            source = GrammarSource("json_schema", check_schema(schema, "schema"))
            constraint = Constraint(grammars.compile(source))
        except InvalidRequest:
            continue
        for i in range(per_schema):
            seed = 1000 * number + i
            hot = SamplingParams(temperature=1.5, seed=seed)
            yield Wanted(case, constraint, hot, prompt_of(seed, 8))


def draw(driver: Driver, answers: Iterable[Wanted]) -> None:
    """Fill in the texts, as many at a time as there are slots."""
    waiting, running = deque(answers), dict[int, Wanted]()
    eog = driver.backend.tokenizer.eog
    while waiting or running:
        for slot in range(SLOTS):
            if slot not in running and waiting:
                running[slot] = answer = waiting.popleft()
                driver.start(slot, answer.prompt, answer.sampling, constraint=answer.constraint)
        assert driver.step() is DecodeCode.OK
        for slot, answer in list(running.items()):
            sequence = driver.running[slot]
            error = sequence.samples[-1].error
            assert error is None, f"{answer.case}: {error}"
            ended = sequence.said[-1] in eog
            if ended:
                answer.text = driver.backend.tokenizer.decode(sequence.said[:-1]).decode()
            if ended or len(sequence.said) == MAX_TOKENS:
                driver.cancel(slot)
                del running[slot]


def check(answers: Sequence[Wanted]) -> None:
    faults = [
        f"{answer.case}: {answer.text!r}: {fault}"
        for answer in answers
        if answer.text is not None
        for fault in Judge(answer.case).faults(answer.text)
    ]
    assert not faults, "\n".join(faults[:20])
    cut = sum(answer.text is None for answer in answers)
    print(f"{len(answers)} answers, {cut / len(answers):.2%} cut at {MAX_TOKENS} tokens")
    assert cut <= 0.05 * len(answers)


@pytest.fixture
def driver(make_driver: MakeDriver) -> Driver:
    return make_driver(SPEC, slots=SLOTS, n_ctx=MAX_TOKENS + 16)


def test_every_answer_that_ends_is_valid(driver: Driver) -> None:
    answers = list(wanted(driver, SAMPLES))
    draw(driver, answers)
    check(answers)


@pytest.mark.parametrize("kind", KINDS)
def test_so_is_every_answer_of_one_type(driver: Driver, kind: str) -> None:
    """Many schemas of the suite name no type: of all values few would be of the type that they are about."""
    answers = list(wanted(driver, 5, kind))
    draw(driver, answers)
    check(answers)
