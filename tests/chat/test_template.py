"""What templates are given, and how their errors become the caller's."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest

from server.chat import environment
from server.chat.reasoning import ReasoningCounter
from server.chat.template import RESERVED, ChatTemplate
from server.core.errors import InvalidRequest, ModelFileError
from tests.fakes import CHAT_TEMPLATE, MARKERS, FakeTokenizer

USER = [{"role": "user", "content": "hi"}]


def render(source, messages=USER, tools=None, **kwargs):
    now = lambda: datetime(2026, 1, 2, 3, 4, 5)  # noqa: E731, DTZ001
    return ChatTemplate(source, FakeTokenizer(), now).render(messages, tools, kwargs)


def test_variables_reach_the_template():
    source = "{{ add_generation_prompt }} {{ eos_token }} {{ enable_thinking }} {{ tools }}{{ documents }}"
    assert render(source, enable_thinking=False) == "True <|im_end|> False NoneNone"


def test_tojson_keeps_unicode_and_markup():
    assert render("{{ {'a': '<é>&'} | tojson }}") == '{"a": "<é>&"}'
    assert render("{{ [1, 2] | tojson(indent=1) }}") == "[\n 1,\n 2\n]"
    assert render(
        "{{ {'b': 1, 'a': 'é𝄞<|think|>'} | tojson(ensure_ascii=True, sort_keys=true) }}"
    ) == ('{"a": "\\u00e9\\ud834\\udd1e<|think|>", "b": 1}')
    assert render("{{ [1, 2] | tojson(separators=(',', ':')) }}") == "[1,2]"


def test_helpers():
    assert render("{{ strftime_now('%Y-%m-%d') }}") == "2026-01-02"
    assert render("{% generation %}x{% endgeneration %}") == "x"
    assert (
        render("{% for m in [1, 2] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}")
        == "1"
    )


def test_the_templates_own_refusal_is_the_callers_error():
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ dict.update(messages[0], x=1) }}",
        "{{ namespace(_x=1) }}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ (1).bit_length(2) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages | tojson }}",
    ],
)
def test_a_template_that_stumbles_is_a_400(source):
    messages = [{"role": "user", "content": "hi", "extra": float("nan")}]
    with pytest.raises(InvalidRequest):
        render(source, messages)


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{% for a in b %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
    ],
    ids=["syntax", "blocks", "parentheses"],
)
def test_a_template_that_does_not_compile_is_a_bad_file(source):
    with pytest.raises(ModelFileError, match="does not compile"):
        ChatTemplate(source, FakeTokenizer())


def test_without_a_template_chatml_if_the_vocabulary_has_it():
    assert render(None) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    bare = ChatTemplate(None, FakeTokenizer(control={}, markers={}))
    with pytest.raises(InvalidRequest, match="no chat template"):
        bare.encode(USER)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_variables_of_the_server_cannot_be_replaced(name):
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate("x", FakeTokenizer()).render(USER, None, {name: 1})
    assert caught.value.param == "chat_template_kwargs"


CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
CALLED = [*USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]


def test_arguments_stay_a_string_where_the_template_writes_them_right():
    assert '"arguments": {"a": "b"}' in render(CHAT_TEMPLATE, CALLED)


def test_arguments_become_an_object_where_the_template_needs_one():
    source = "{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}"
    assert render(source, CALLED[1:]) == '{"a": "b"}'


def test_arguments_nested_too_deep_are_the_callers_error():
    function = {"name": "f", "arguments": "[" * 100_000 + "]" * 100_000}
    call = [{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]
    with pytest.raises(InvalidRequest, match="nested"):
        render(CALLS.replace("BODY", "{{ a | tojson }}"), call)


def test_reasoning_is_counted_between_the_markers():
    pieces = FakeTokenizer().pieces
    counter = ReasoningCounter(MARKERS, pieces)
    for tokens in ([10, 259, 2], [3], [260, 4], [5]):
        counter.add(tokens)
    assert counter.count == 4
    opened = ReasoningCounter(MARKERS, pieces, [259, 65, 260, 259, 10])
    opened.add([65, 66, 260, 67])
    assert opened.count == 3
    assert not ReasoningCounter(MARKERS, pieces, [259, 260]).inside
    assert not ReasoningCounter({}, pieces, [1]).inside


@pytest.mark.parametrize("before", [[65], [259, 66, 260], [259, 260, 10]])
def test_a_marker_within_the_answer_begins_no_reasoning(before):
    counter = ReasoningCounter(MARKERS, FakeTokenizer().pieces)
    counter.add(before)
    count = counter.count
    counter.add([259, 66, 67])
    assert counter.count == count
    assert not counter.inside


NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}{{ tools }}"
)


@pytest.mark.parametrize(
    ("source", "takes"),
    [
        (CHAT_TEMPLATE, True),
        (NEEDS_SYSTEM, True),
        (
            "{% for tool in tools %}{{ tool.function.parameters.properties.x.type }}{% endfor %}",
            False,
        ),
        ("{% if tools %}{{ raise_exception('no place for tools') }}{% endif %}", False),
        ("{{ messages[0].content }}", False),
        (None, False),
    ],
)
def test_a_template_takes_tools_when_it_shows_them(source, takes):
    assert ChatTemplate(source, FakeTokenizer()).takes_tools is takes


def test_what_a_template_looks_for():
    source = "{% set x = a.b %}{{ x }}{{ strftime_now('%Y') }}{{ enable_thinking | default(true) }}"
    assert ChatTemplate(source, FakeTokenizer()).variables == {"a", "enable_thinking"}
    bare = ChatTemplate(None, FakeTokenizer(control={}, markers={}))
    assert bare.variables == frozenset()


@pytest.mark.parametrize(
    ("source", "thinks"),
    [
        ("{{ '<think>' }}", True),
        ("{{ x.split('</think>') }}", True),
        ("{{ 'think' }}", False),
        (None, False),
    ],
)
def test_a_template_that_knows_of_thoughts(source, thinks):
    assert ChatTemplate(source, FakeTokenizer()).thinks is thinks


ARGUMENTS = '{"key":"value"}'
AS_GIVEN = "{{ a if a is string else a | tojson }}"
CALLS = """\
{%- for m in messages %}{% for c in m.tool_calls %}{% set a = c.function.arguments %}
{{- c.function.name }}:BODY{% endfor %}{% endfor %}"""


@pytest.mark.parametrize(
    ("body", "rendered"),
    [
        (AS_GIVEN, ARGUMENTS),
        ("{{ a }}", ARGUMENTS),
        ("{{ '' + a }}", ARGUMENTS),
        ("{{ a | tojson }}", '{"key": "value"}'),
        ("{{ a.items() | first | join('=') }}", "key=value"),
        ("{{ a if a is string else a.items() | first | join('=') }}", "key=value"),
    ],
)
def test_arguments_are_given_in_the_form_that_the_template_writes_right(body, rendered):
    call = {"type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert render(CALLS.replace("BODY", body), messages) == f"f:{rendered}"


@pytest.mark.parametrize(
    ("body", "given", "shown"),
    [
        ("{{ '' + a }}", ARGUMENTS, ARGUMENTS),
        ("{{ '' + a }}", {"key": "é"}, '{"key": "é"}'),
        ("{{ a | tojson }}", ARGUMENTS, '{"key": "value"}'),
        ("{{ a | tojson }}", {"key": "é"}, '{"key": "é"}'),
    ],
)
def test_arguments_may_come_as_an_object_too(body, given, shown):
    call = {"type": "function", "function": {"name": "f", "arguments": given}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert render(CALLS.replace("BODY", body), messages) == f"f:{shown}"


def test_empty_arguments_are_an_empty_object():
    call = {"type": "function", "function": {"name": "f", "arguments": ""}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    for body in ("{{ a | tojson }}", "{{ a }}"):
        assert render(CALLS.replace("BODY", body), messages) == "f:{}"


RESULT = {"role": "tool", "tool_call_id": "a", "content": "found"}
SPEAKS = "{% for m in messages if m.role in ROLES %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "system", "content": "be brief"}, "a system message that is not the first"),
        (RESULT, "the result of a tool"),
        ({**RESULT, "role": "function"}, "the result of a function"),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            "a tool call",
        ),
    ],
)
def test_what_a_template_would_leave_out_is_refused(message, named):
    source = SPEAKS.replace("ROLES", "['user', 'assistant']")
    with pytest.raises(InvalidRequest, match=re.escape(f"has no place for {named}")) as caught:
        render(source, [*USER, message])
    assert caught.value.param == "messages"


def test_what_a_template_refuses_by_itself_has_its_own_words():
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('never a system') }}{% endif %}"
    )
    with pytest.raises(InvalidRequest, match="never a system"):
        render(source, [{"role": "system", "content": "be brief"}, *USER])


def test_calls_without_content_get_the_content_under_which_the_template_shows_them():
    source = """\
{%- for m in messages %}{% if m.role == 'assistant' and m.content is none %}
{{- m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}{% endfor %}"""
    assert render(source, CALLED) == "hif"
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}"
    )
    assert render(source + "{% endfor %}{% endfor %}", CALLED) == "hif"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_reasoning_in_history_has_the_name_that_the_template_knows(name, read):
    messages = [*USER, {"role": "assistant", "content": "yes", name: "hm"}]
    source = "{% for m in messages %}{{ m.NAME }}{{ m.content }}{% endfor %}"
    assert render(source.replace("NAME", read), messages) == "hihmyes"


def test_indentation_of_deep_nesting_is_bounded(monkeypatch):
    monkeypatch.setattr(environment, "LONGEST", 10_000)
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": nested}}}]
    with pytest.raises(InvalidRequest, match="longer than 10,000 characters"):
        render("{{ tools | tojson(indent=4) | length }}", USER, tools)
    assert len(render("{{ tools | tojson }}", USER, tools)) < 300


@pytest.mark.parametrize("look", ["b.content", "b['content']"])
def test_going_through_all_messages_for_each_is_bounded(monkeypatch, look):
    monkeypatch.setattr(environment, "MOST_STEPS", 100)
    source = "{% for a in messages %}{% for b in messages %}{{ LOOK }}{% endfor %}{% endfor %}"
    template = ChatTemplate(source.replace("LOOK", look), FakeTokenizer())
    for _ in range(2):
        assert template.render(USER * 10) == "hi" * 100
    with pytest.raises(InvalidRequest, match="too many times"):
        template.render(USER * 11)


def test_a_long_prompt_is_bounded(monkeypatch):
    monkeypatch.setattr(environment, "LONGEST", 10_000)
    source = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    assert render(source, [{"role": "user", "content": "x" * 5000}]) == "x" * 10_000
    with pytest.raises(InvalidRequest, match="longer than 10,000 characters"):
        render(source, [{"role": "user", "content": "x" * 5001}])
