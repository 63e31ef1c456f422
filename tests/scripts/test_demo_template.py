"""The demo model's chat template renders what Qwen3's does; expected texts are fixed."""

from __future__ import annotations

from typing import Any

import pytest

from demo_model.template import render

Message = dict[str, Any]

SYSTEM: Message = {"role": "system", "content": "Be brief."}
USER: Message = {"role": "user", "content": "Hi"}
TOOL: Message = {
    "type": "function",
    "function": {"name": "wetter", "description": "Größe 天气", "parameters": {"type": "object"}},
}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}],
}
TOOLS_TEXT = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "wetter", "description": "Größe 天气", '
    '"parameters": {"type": "object"}}}\n</tools>\n\n'
    "For each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
HI = "<|im_start|>user\nHi<|im_end|>\n"
OPEN = "<|im_start|>assistant\n"


def test_one_question() -> None:
    assert render([USER]) == HI + OPEN


def test_system_prompt() -> None:
    assert render([SYSTEM, USER]) == "<|im_start|>system\nBe brief.<|im_end|>\n" + HI + OPEN


@pytest.mark.parametrize(
    ("enabled", "end"), [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")]
)
def test_thinking_switch(enabled: bool | None, end: str) -> None:
    assert render([USER], enable_thinking=enabled) == HI + OPEN + end


def test_tools_without_a_system_prompt() -> None:
    assert render([USER], [TOOL]) == "<|im_start|>system\n" + TOOLS_TEXT + HI + OPEN


def test_tools_after_a_system_prompt() -> None:
    expected = "<|im_start|>system\nBe brief.\n\n" + TOOLS_TEXT + HI + OPEN
    assert render([SYSTEM, USER], [TOOL]) == expected


def test_tool_results_share_one_user_turn() -> None:
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    assert render([USER, CALL, *results]) == (
        HI + OPEN + '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n"
        "<tool_response>\n2\n</tool_response><|im_end|>\n" + OPEN
    )


def test_arguments_as_text_and_several_calls() -> None:
    call = {"function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"role": "assistant", "content": "Wait.", "tool_calls": [call, call]}
    one = '<tool_call>\n{"name": "f", "arguments": {"a":1}}\n</tool_call>'
    expected = f"{HI}{OPEN}<think>\n\n</think>\n\nWait.\n{one}\n{one}<|im_end|>\n"
    assert render([USER, message], add_generation_prompt=False) == expected


def test_old_thoughts_are_dropped() -> None:
    old = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}
    assert render([USER, old, USER]) == f"{HI}{OPEN}Hello<|im_end|>\n{HI}{OPEN}"


def test_thoughts_after_the_question_are_kept() -> None:
    thinking = {**CALL, "reasoning_content": "hm"}
    text = render([USER, thinking, {"role": "tool", "content": "1"}])
    assert text.startswith(HI + OPEN + "<think>\nhm\n</think>\n\n<tool_call>\n")


def test_a_later_system_message_keeps_its_place() -> None:
    assert render([USER, SYSTEM]) == HI + "<|im_start|>system\nBe brief.<|im_end|>\n" + OPEN
