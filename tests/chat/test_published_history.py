"""What Qwen's published templates make of thoughts and calls in a conversation's history."""

from __future__ import annotations

import json

import pytest

from server.chat.template import ChatTemplate
from tests.chat.published import published_template
from tests.fakes import FakeTokenizer

THINKING = ["Qwen-Qwen3-0.6B", "Qwen3.5-4B"]
CALL = {"id": "c1", "type": "function"}
ASK, AGAIN = {"role": "user", "content": "one?"}, {"role": "user", "content": "two?"}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "found"}


def template(name):
    return ChatTemplate(published_template(name), FakeTokenizer())


def answer(content="", arguments=None, **more):
    if arguments is None:
        return {"role": "assistant", "content": content, **more}
    call = {**CALL, "function": {"name": "look", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call], **more}


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_before_the_last_question_are_not_shown(name, field):
    shown = template(name).render([ASK, answer("yes", **{field: "old thought"}), AGAIN])
    assert "old thought" not in shown
    assert "<|im_start|>assistant\nyes<|im_end|>" in shown


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_that_led_to_a_call_are_shown_while_it_is_worked_on(name, field):
    call = answer(arguments='{"city": "Oulu"}', **{field: "fresh thought"})
    shown = template(name).render(
        [ASK, answer("yes", **{field: "old thought"}), AGAIN, call, RESULT]
    )
    assert "old thought" not in shown
    assert "<|im_start|>assistant\n<think>\nfresh thought\n</think>\n\n<tool_call>" in shown


@pytest.mark.parametrize("name", THINKING)
def test_thoughts_within_the_text_are_taken_out_of_old_answers_and_kept_in_new_ones(name):
    told = "<think>\nhidden\n</think>\n\nyes"
    rendered = template(name).render([ASK, answer(told), AGAIN])
    assert "hidden" not in rendered
    assert "<|im_start|>assistant\nyes<|im_end|>" in rendered
    working = answer(told, arguments="{}")
    shown = template(name).render([ASK, working, RESULT])
    assert "<|im_start|>assistant\n<think>\nhidden\n</think>\n\nyes\n" in shown


@pytest.mark.parametrize("name", THINKING)
def test_a_question_that_looks_like_a_result_is_a_question(name):
    again = {**AGAIN, "content": "<tool_response>two?</tool_response>"}
    shown = template(name).render([ASK, answer("yes", reasoning_content="old thought"), again])
    assert "old thought" not in shown
    assert again["content"] in shown


WRITTEN = {
    "Qwen-Qwen3-0.6B": '<tool_call>\n{"name": "look", "arguments": {"city": "Zürich", "n": 2}}\n</tool_call>',
    "Qwen3.5-4B": (
        "<tool_call>\n<function=look>\n<parameter=city>\nZürich\n</parameter>\n"
        "<parameter=n>\n2\n</parameter>\n</function>\n</tool_call>"
    ),
}
WRITTEN["Qwen3-Coder"] = WRITTEN["Qwen3.5-4B"]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("as_text", [True, False])
def test_arguments_come_out_right_whether_they_are_text_or_an_object(name, as_text):
    arguments = {"city": "Zürich", "n": 2}
    given = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
    shown = template(name).render([ASK, answer(arguments=given), RESULT])
    assert WRITTEN[name] in shown


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_without_arguments_and_several_at_once(name):
    calls = [{**CALL, "function": {"name": f, "arguments": a}} for f, a in (("a", ""), ("b", "{}"))]
    turn = {"role": "assistant", "content": None, "tool_calls": calls}
    shown = template(name).render([ASK, turn, RESULT, RESULT])
    assert '"arguments": }' not in shown
    assert shown.count("<tool_call>\n") == shown.count("</tool_call>") == 2
    assert shown.count("<tool_response>\nfound\n</tool_response>") == 2


@pytest.mark.parametrize("name", THINKING)
def test_thinking_is_switched_by_its_variable(name):
    made = template(name)
    assert "enable_thinking" in made.variables
    assert made.thinks
    assert made.takes_tools
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert made.render([ASK], None, {"enable_thinking": False}).endswith(closed)
    assert not made.render([ASK], None, {"enable_thinking": True}).endswith("</think>\n\n")
