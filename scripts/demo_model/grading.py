"""The held-out check: what is asked, and what counts as right.

Rules
    *taught* and *paraphrase*, *copy*, *extract*, *result* and the like: the reply without its
    ``<think>`` block, spaces trimmed and runs of spaces made one, equals the one right answer.
    *tools*, *tools, hard*: the reply holds exactly the expected calls; each parses as JSON, and name and all
    arguments are equal. All tool names are new; in *tools* the things they are about (prices,
    weather) are familiar, in *tools, hard* those words are new too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from demo_model import task_chat, task_copy, task_tools
from demo_model.facts import Fact, arithmetic_facts, written_facts
from demo_model.samples import Sample, without_thought
from demo_model.words import held_out_pool, new_names_pool

Ask = Callable[[Sample], str]
TARGETS = {"taught": 90.0, "paraphrase": 60.0, "tools": 90.0}
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One case of the check."""

    family: str
    sample: Sample

    def without_thinking(self) -> Question:
        """The same case with ``enable_thinking`` off."""
        return replace(self, sample=replace(self.sample, thinking=False))


@dataclass(frozen=True)
class Wrong:
    """A reply that was not right."""

    question: str
    expected: str
    reply: str


@dataclass(frozen=True)
class Score:
    """The result of one family."""

    family: str
    asked: int
    right: int
    wrong: tuple[Wrong, ...]

    @property
    def percent(self) -> float:
        """Share of right answers, in percent."""
        return 100.0 * self.right / self.asked if self.asked else 0.0

    @property
    def target(self) -> float | None:
        """The percentage promised for this family, if any."""
        return TARGETS.get(self.family)

    @property
    def missed(self) -> bool:
        """Whether a promised percentage was not reached."""
        return self.target is not None and self.asked > 0 and self.percent < self.target


def parse_calls(reply: str) -> list[Any] | None:
    """Calls in a reply's text, or ``None`` when one does not parse."""
    try:
        return [json.loads(body) for body in _CALL.findall(without_thought(reply))]
    except json.JSONDecodeError:
        return None


def is_right(sample: Sample, reply: str) -> bool:
    """Whether ``reply`` is the answer to ``sample``, by the rules above."""
    expected = parse_calls(sample.answer)
    if expected:
        return parse_calls(reply) == expected
    wanted, got = (without_thought(text).split() for text in (sample.answer, reply))
    return wanted == got


def _plain(family: str, fact: Fact, text: str) -> Question:
    message = {"role": "user", "content": text}
    return Question(family, Sample(family, (message,), fact.answer))


def taught_questions() -> list[Question]:
    """Every taught phrasing of every written fact, and the first one of all arithmetic."""
    found = [_plain("taught", fact, text) for fact in written_facts() for text in fact.ask]
    return found + [_plain("taught", fact, fact.ask[0]) for fact in arithmetic_facts()]


def paraphrase_questions() -> list[Question]:
    """Every held-out phrasing of the written facts."""
    return [_plain("paraphrase", fact, text) for fact in written_facts() for text in fact.held]


def _drawn(rng: Random, family: str, count: int) -> list[Question]:
    pool = held_out_pool()
    made: list[Question] = []
    while len(made) < count:
        if family == "copy":
            sample = task_copy.repeat_sample(rng, pool, None)
        elif family == "extract":
            maker = rng.choice((task_copy.record_sample, task_copy.kind_sample))
            sample = maker(rng, pool, None)
        elif family == "needle":
            sample = task_copy.needle_sample(rng, pool, None, 40)
        elif family == "name":
            sample = task_chat.memory_sample(rng, pool, None)
            if rng.random() < 0.5:
                sample = task_chat.persona_sample(rng, pool)
        elif family == "count":
            sample = task_chat.count_sample(rng, None)
        elif family == "no tool":
            sample = task_chat.fact_sample(rng, None, task_tools.tool_question(rng, pool).tools)
        else:
            maker = task_tools.result_sample if family == "result" else task_tools.call_sample
            sample = maker(rng, pool if family == "tools, hard" else new_names_pool(), None)
        made.append(Question(family, sample))
    return made


def questions(seed: int = 7, count: int = 200) -> list[Question]:
    """The whole check; drawn families have ``count`` cases each."""
    rng = Random(seed)
    found = taught_questions() + paraphrase_questions()
    for family in (
        "tools",
        "tools, hard",
        "result",
        "no tool",
        "copy",
        "extract",
        "needle",
        "name",
        "count",
    ):
        found += _drawn(rng, family, count)
    return found


def sampled(every: Iterable[Question], count: int, seed: int = 7) -> list[Question]:
    """At most ``count`` questions of each family, chosen by ``seed``."""
    by_family: dict[str, list[Question]] = {}
    for question in every:
        by_family.setdefault(question.family, []).append(question)
    rng = Random(seed)
    return [
        question
        for family in by_family.values()
        for question in rng.sample(family, min(count, len(family)))
    ]


def score(asked: Iterable[tuple[Question, str]]) -> list[Score]:
    """Grade replies, one score per family in the order of appearance."""
    right: dict[str, int] = {}
    wrong: dict[str, list[Wrong]] = {}
    for question, reply in asked:
        good = is_right(question.sample, reply)
        right[question.family] = right.get(question.family, 0) + good
        missed = wrong.setdefault(question.family, [])
        if not good:
            last = str(question.sample.messages[-1]["content"])
            missed.append(Wrong(last, question.sample.answer, reply))
    return [
        Score(family, count + len(wrong[family]), count, tuple(wrong[family]))
        for family, count in right.items()
    ]


def grade(ask: Ask, chosen: Iterable[Question], parallel: int = 1) -> list[Score]:
    """Put every question to ``ask``, ``parallel`` at once, and grade the replies."""
    asked = list(chosen)
    with ThreadPoolExecutor(parallel) as threads:
        replies = threads.map(ask, (question.sample for question in asked))
        return score(zip(asked, replies, strict=True))


def table(scores: Iterable[Score]) -> str:
    """The scores as the check prints them."""
    lines = [f"{'family':<12}{'asked':>7}{'right':>7}{'percent':>9}{'target':>8}"]
    for item in scores:
        goal = "-" if item.target is None else f"{item.target:.0f}"
        mark = "  MISSED" if item.missed else ""
        lines.append(
            f"{item.family:<12}{item.asked:>7}{item.right:>7}{item.percent:>9.1f}{goal:>8}{mark}"
        )
    return "\n".join(lines)
