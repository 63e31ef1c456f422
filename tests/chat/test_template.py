"""What templates are given, and how their errors become the caller's."""

from __future__ import annotations

from datetime import datetime

import pytest

from server.chat.reasoning import ReasoningCounter
from server.chat.template import RESERVED, ChatTemplate
from server.core.errors import InvalidRequest, ModelFileError
from tests.fakes import CHAT_TEMPLATE, MARKERS, FakeTokenizer

USER = [{"role": "user", "content": "hi"}]


def render(source, messages=USER, tools=None, **kwargs):
    now = lambda: datetime(2026, 1, 2, 3, 4, 5)  # noqa: E731, DTZ001
    return ChatTemplate(source, FakeTokenizer(), now).render(messages, tools, kwargs)


def test_variables_reach_the_template():
    source = "{{ add_generation_prompt }} {{ eos_token }} {{ enable_thinking }} {{ tools }}"
    assert render(source, enable_thinking=False) == "True <|im_end|> False None"


def test_tojson_keeps_unicode_and_markup():
    assert render("{{ {'a': '<é>&'} | tojson }}") == '{"a": "<é>&"}'
    assert render("{{ [1, 2] | tojson(indent=1) }}") == "[\n 1,\n 2\n]"
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
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages | tojson }}",
    ],
)
def test_a_template_that_stumbles_is_a_400(source):
    messages = [{"role": "user", "content": "hi", "extra": float("nan")}]
    with pytest.raises(InvalidRequest):
        render(source, messages)


def test_a_template_that_does_not_compile_is_a_bad_file():
    with pytest.raises(ModelFileError, match="does not compile"):
        ChatTemplate("{% for %}", FakeTokenizer())


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
        render("{{ messages[0].tool_calls[0].function.arguments | tojson }}", call)


def test_reasoning_is_counted_between_the_markers():
    counter = ReasoningCounter(MARKERS)
    for tokens in ([1, 259, 2], [3], [260, 4], [5]):
        counter.add(tokens)
    assert counter.count == 4
    opened = ReasoningCounter(MARKERS, [259, 1, 260, 259, 10])
    opened.add([1, 2, 260, 3])
    assert opened.count == 3
    assert not ReasoningCounter(MARKERS, [259, 260]).inside
    assert not ReasoningCounter({}, [1]).inside


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
PROMPTED = (
    "{% for m in messages %}{% for c in m.tool_calls %}{% set a = c.function.arguments %}BODY"
)
ENDED = PROMPTED + "{% endfor %}{% endfor %}"


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
    assert render(ENDED.replace("BODY", body), messages) == rendered


def test_empty_arguments_are_an_empty_object():
    call = {"type": "function", "function": {"name": "f", "arguments": ""}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert render(ENDED.replace("BODY", "{{ a | tojson }}"), messages) == "{}"
