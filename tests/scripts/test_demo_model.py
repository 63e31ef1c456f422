"""The demo model's data is honest and seeded, and the committed file is what is promised."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest

from demo_model import grading, mixture, words
from demo_model.facts import held_out_phrasings, normalise, read_facts, written_facts
from demo_model.samples import Sample, thought
from demo_model.task_tools import call_text, tool_question

MODEL = Path(__file__).resolve().parents[2] / "models" / "demo.gguf"
LARGEST = 8_000_000


def samples(seed: int, count: int) -> list[Sample]:
    return list(islice(mixture.stream(seed, lambda: 0.5), count))


def tool_names(sample: Sample) -> set[str]:
    return {tool["function"]["name"] for tool in sample.tools}


def test_hundreds_of_questions_in_both_languages() -> None:
    facts = written_facts()
    assert sum(fact.language == "en" for fact in facts) >= 200
    assert sum(fact.language == "zh" for fact in facts) >= 100
    assert all(fact.ask and fact.held for fact in facts)


def test_no_taught_phrasing_is_held_out() -> None:
    taught = {normalise(text) for fact in written_facts() for text in fact.ask}
    assert not taught & held_out_phrasings()


def test_a_phrasing_has_one_answer() -> None:
    answers: dict[str, set[str]] = {}
    for fact in written_facts():
        for text in (*fact.ask, *fact.held):
            answers.setdefault(normalise(text), set()).add(fact.answer)
    assert not {text: found for text, found in answers.items() if len(found) > 1}


def test_training_never_shows_a_held_out_phrasing() -> None:
    held = held_out_phrasings()
    for sample in samples(11, 6000):
        for message in sample.messages:
            if message["role"] == "user":
                assert normalise(str(message["content"])) not in held


def test_training_and_check_share_no_word_parts() -> None:
    trained, held = words.training_pool(), words.held_out_pool()
    for field in ("syllables", "verbs", "nouns", "nouns_zh"):
        assert not set(getattr(trained, field)) & set(getattr(held, field))


def test_checked_tool_names_are_never_trained() -> None:
    asked = [q.sample for q in grading.questions() if q.family in {"tools", "result"}]
    checked = {name for sample in asked for name in tool_names(sample)}
    trained = {name for sample in samples(12, 6000) for name in tool_names(sample)}
    assert len(checked) > 500
    assert not checked & trained


def test_the_generator_is_deterministic() -> None:
    assert samples(5, 300) == samples(5, 300)
    assert samples(5, 300) != samples(6, 300)
    assert grading.questions(3, 5) == grading.questions(3, 5)


def test_a_broken_fact_file_names_the_fact(tmp_path: Path) -> None:
    path = tmp_path / "facts.txt"
    path.write_text("= port\nA 8000\n? Which port?\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"facts\.txt: fact 'port' lacks !"):
        read_facts(path, "en")


def test_an_answer_is_graded_without_its_thought() -> None:
    message = {"role": "user", "content": "?"}
    plain = Sample("taught", (message,), "It is 3.")
    assert grading.is_right(plain, thought("1 plus 2", "It  is 3.\n"))
    assert not grading.is_right(plain, "It is 4.")


def test_a_call_is_right_only_with_every_argument() -> None:
    asked = tool_question(Random(1), words.held_out_pool())
    sample = Sample("tools", ({"role": "user", "content": asked.question},), "", asked.tools)
    sample = Sample("tools", sample.messages, call_text("f", {"a": 1}), asked.tools)
    assert grading.is_right(
        sample, '<tool_call>\n{"arguments": {"a": 1}, "name": "f"}\n</tool_call>'
    )
    assert not grading.is_right(sample, call_text("f", {"a": "1"}))
    assert not grading.is_right(sample, call_text("f", {"a": 1}) + call_text("f", {"a": 1}))
    assert not grading.is_right(sample, "<tool_call>\n{broken\n</tool_call>")


def test_a_missed_target_shows_in_the_table() -> None:
    message = {"role": "user", "content": "?"}
    question = grading.Question("tools", Sample("tools", (message,), call_text("f", {})))
    scores = grading.grade(lambda _sample: "no", [question])
    assert scores[0].missed
    assert "MISSED" in grading.table(scores)


def test_the_committed_file_is_small() -> None:
    assert 1_000_000 < MODEL.stat().st_size <= LARGEST


def test_the_committed_file_carries_this_template() -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is a training dependency; see requirements.in")
    from demo_model.template import template_source

    reader = gguf.GGUFReader(MODEL)
    assert reader.fields["tokenizer.chat_template"].contents() == template_source()
    assert reader.fields["general.architecture"].contents() == "qwen3"
    assert reader.fields["qwen3.context_length"].contents() == 32768
