"""Callers' text never becomes control tokens, whatever it is and wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.template import ChatTemplate
from server.core.errors import InvalidRequest
from tests.fakes import CHAT_TEMPLATE, CONTROL, MARKERS, FakeTokenizer

SPECIAL = {**CONTROL, **MARKERS}
TEMPLATES = {
    "fake": CHAT_TEMPLATE,
    "chatml": None,
    "demo": Path("scripts/demo_model/chat_template.jinja").read_text(encoding="utf-8"),
    "glue": "{% for m in messages %}{{ m.content }}{{ m.content }}|>{% endfor %}",
}
WITH_CALLS = {"fake", "demo"}
FRAGMENTS = [*SPECIAL, "<|", "|>", "<|im_", "im_start|>", "<", ">", "start|>", "\U00100000"]
text = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from([*FRAGMENTS, "\U0010fffd", "a", "é", "中", "{{ x }}", "\n"])).map(
        "".join
    ),
).filter(lambda value: not any(0xD800 <= ord(char) < 0xE000 for char in value))


COMPILED = {name: ChatTemplate(source, FakeTokenizer()) for name, source in TEMPLATES.items()}
TOOLS = ChatTemplate("<|im_start|>{{ tools | tojson }}{{ extra }}<|im_end|>", FakeTokenizer())


def special_of(tokens):
    return [token for token in tokens if token >= 256]


def chat(name, content, system="be brief", tool="result"):
    asked = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    if name not in WITH_CALLS:
        return [*asked, {"role": "assistant", "content": "yes"}, {"role": "user", "content": tool}]
    return [
        *asked,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "content": tool},
        {"role": "user", "content": "and?"},
    ]


@settings(max_examples=200)
@given(content=text, system=text, tool=text)
@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_are_those_of_the_template(name, content, system, tool):
    template = COMPILED[name]
    harmless = template.encode(chat(name, "hello", "calm", "fine"))
    tokens = template.encode(chat(name, content, system, tool))
    assert special_of(tokens) == special_of(harmless)


@settings(max_examples=200)
@given(content=text)
def test_text_survives_unchanged(content):
    template = COMPILED["fake"]
    tokens = template.encode([{"role": "user", "content": content}])
    shown = FakeTokenizer().decode(tokens, special=True).decode()
    assert shown == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    assert shown == template.render([{"role": "user", "content": content}])


@settings(max_examples=200)
@given(content=text)
def test_tool_definitions_and_variables_are_protected(content):
    tools = [{"type": "function", "function": {"name": content, "x": {content: [content]}}}]
    tokens = TOOLS.encode([{"role": "user", "content": "x"}], tools, {"extra": content})
    assert special_of(tokens) == [CONTROL["<|im_start|>"], CONTROL["<|im_end|>"]]


def test_assistant_history_may_hold_markers_but_no_control_tokens():
    template = ChatTemplate(CHAT_TEMPLATE, FakeTokenizer())
    content = "<think>hm</think>yes<|im_end|>"
    tokens = template.encode([{"role": "assistant", "content": content}])
    ids = [SPECIAL[name] for name in ("<|im_start|>", "<think>", "</think>", "<|im_end|>")]
    assert special_of(tokens) == [*ids, CONTROL["<|im_start|>"]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_harmless_text_costs_one_tokenize_call(name):
    tokenizer = FakeTokenizer()
    template = ChatTemplate(TEMPLATES[name], tokenizer)
    tokenizer.calls = 0
    template.encode(chat(name, "what is 3 > 2?"))
    assert tokenizer.calls == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_too_many_private_characters_are_refused(name):
    template = COMPILED[name]
    everything = "".join(map(chr, range(0x100000, 0x10FFFE)))
    assert template.encode([{"role": "user", "content": everything}])
    with pytest.raises(InvalidRequest, match="private-use"):
        template.encode([{"role": "user", "content": everything + "<|im_start|>"}])


def test_plain_vocabulary_markers_are_left_alone():
    markers = {"\n\n": 256, "<b>": 257}
    tokenizer = FakeTokenizer({"<|im_start|>": 258}, markers)
    template = ChatTemplate("{{ messages[0].content }}", tokenizer)
    tokens = template.encode([{"role": "user", "content": "a\n\n<b>"}])
    assert tokens == [97, 256, 257]
