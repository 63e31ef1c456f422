"""What is asked: the same of every server, new in every round, in the sizes that are published."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from server.bench.client import Outcome
from server.bench.dialogues import Task, conversation, tool_steps
from server.bench.scenarios import SCENARIOS, Scenario
from server.bench.session import Plan
from server.bench.texts import WORDS, Texts

BY_NAME = {one.name: one for one in SCENARIOS}
SAID = Outcome(status=200, pieces=["I ", "see."])


def questions(task: Task, answers: int = 10) -> list:
    """All questions of a task, or the first of one without an end."""
    asked = [next(task)]
    for _ in range(answers):
        try:
            asked.append(task.send(SAID))
        except StopIteration:
            break
    return asked


def asked_in(scenario: Scenario, number: int = 0, seed: int = 1, users: int | None = None) -> list:
    plan = Plan([], rounds=2, seed=seed, tokens_per_word=1.2)
    rows = plan.rows(scenario, users or scenario.users, number)
    return [[questions(task) for task in (*row.tasks, *row.beside)] for row in rows]


def test_a_seed_writes_the_same_everywhere() -> None:
    # Pinned: published figures name their seed, and it must mean these words in any version.
    assert (
        Texts("1").words(7, "x") == "Picture theater attention connection standard nation surface."
    )


def test_names_and_seeds_write_other_texts_from_the_first_word_on() -> None:
    texts = [Texts(str(seed)).words(12, name) for seed in range(4) for name in range(4)]

    assert len({text.split()[0] for text in texts}) > 8
    assert len(set(texts)) == 16


@pytest.mark.parametrize("per_word", [1.0, 1.2, 2.5, 4.0])
def test_sizes_are_tokens_whatever_a_word_takes(per_word) -> None:
    words = len(Texts("1", per_word).tokens(1000).split())

    assert words * per_word == pytest.approx(1000, rel=0.01)


def test_words_are_plain_and_there_once() -> None:
    assert len(set(WORDS)) == len(WORDS) > 300
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_servers_are_asked_the_same_and_rounds_are_not(scenario) -> None:
    assert asked_in(scenario) == asked_in(scenario)

    def contents(number: int, seed: int) -> set[str]:
        return {
            message["content"]
            for row in asked_in(scenario, number, seed)
            for task in row
            for question in task
            for message in question.messages
            if message["role"] in ("system", "user")
        }

    assert not contents(0, 1) & contents(1, 1)
    assert not contents(0, 1) & contents(0, 2)


@pytest.mark.parametrize(("name", "systems"), [("agents", 1), ("rotate", 8)])
def test_warm_rows_ask_the_same_agents_new_questions(name, systems) -> None:
    cold, warm = asked_in(BY_NAME[name])

    def said(row: list, place: int) -> list[str]:
        return [task[0].messages[place]["content"] for task in row]

    assert set(said(cold, 0)) == set(said(warm, 0))
    assert len(set(said(cold, 0))) == systems
    every = said(cold, 1) + said(warm, 1)
    assert len(set(every)) == len(every)


def test_agents_take_turns() -> None:
    _, warm = asked_in(BY_NAME["rotate"])
    first = [task[0].messages[0]["content"] for task in warm]

    assert len(first) == 16
    assert first[:8] == first[8:]
    assert len(set(first[:8])) == 8


def test_mixed_is_six_parts_three_parts_and_one() -> None:
    (row,) = asked_in(BY_NAME["mixed"])
    kinds = [task[0].kind for task in row]

    assert Counter(kinds) == {"short": 30, "agent": 15, "document": 5}
    assert kinds != sorted(kinds)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_everything_fits_slots_of_4096_tokens(scenario) -> None:
    for row in asked_in(scenario):
        for task in row:
            for question in task:
                words = sum(len(str(message["content"]).split()) for message in question.messages)
                assert words * 1.2 + question.max_tokens <= 4000


def test_short_questions_of_the_reports_have_128_characters() -> None:
    (row,) = asked_in(BY_NAME["report-short"])

    assert {len(task[0].messages[0]["content"]) for task in row} == {128}


def test_a_conversation_brings_along_what_was_answered() -> None:
    asked = questions(conversation(Texts("1"), 3, 20, 8, "c"))

    assert [len(question.messages) for question in asked] == [1, 3, 5]
    assert asked[2].messages[:3] == asked[1].messages
    assert asked[1].messages[1] == {"role": "assistant", "content": "I see."}


def test_tools_are_answered_by_stubs_and_calls_are_paired() -> None:
    asked = questions(tool_steps(Texts("1"), 8, "t"))

    assert [question.kind for question in asked] == ["retrieve", "run", "chart", "answer"]
    offered = {tool["function"]["name"] for tool in asked[0].tools}
    history = asked[-1].messages
    calls = [call for message in history for call in message.get("tool_calls", ())]
    results = [m["tool_call_id"] for m in history if m["role"] == "tool"]
    assert [call["id"] for call in calls] == results
    assert {call["function"]["name"] for call in calls} == offered


def test_streams_beside_documents_never_run_out() -> None:
    plan = Plan([], rounds=1, seed=1, tokens_per_word=1.2)
    (row,) = plan.rows(BY_NAME["longdoc"], 3, 0)

    assert len(row.beside) == 3
    assert all(len(questions(task, answers=50)) == 51 for task in row.beside)
    assert row.users == 1


def test_the_published_list_is_the_list() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \| (\d+) \|", page, re.MULTILINE)

    assert [(name, int(users)) for name, _, users in rows] == [(s.name, s.users) for s in SCENARIOS]
    for (_, text, _), scenario in zip(rows, SCENARIOS, strict=True):
        numbers = re.findall(r"[\d,]*\d", scenario.about)
        assert set(numbers) <= set(re.findall(r"[\d,]*\d", text)), scenario.name
