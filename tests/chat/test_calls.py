"""Calls are read while they arrive; what is no call stays text."""

import json

import pytest

from server.chat.calls import find_form
from server.chat.forms.functions import FunctionsForm
from server.chat.forms.hermes import HermesForm
from server.chat.reply import CallArguments, CallOpened, Content
from server.chat.shape import ReplyShape
from tests.chat.replies import calls, content, parse, tool
from tests.fakes import CHAT_TEMPLATE

HERMES = ReplyShape(form=HermesForm())
WEATHER = tool(
    "weather",
    {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "where": {"type": "object"},
        "unit": {"enum": ["C", "F"]},
        "note": {"type": ["string", "null"]},
        "place": {"$ref": "#/$defs/Place"},
        "flag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    **{"$defs": {"Place": {"type": "string"}}},
)
FUNCTIONS = ReplyShape(form=FunctionsForm(), tools=[WEATHER])


def in_all_steps(shape, text):
    """Parts of `text`, which must not depend on how it is cut."""
    parts = parse(shape, [text])
    for step in (1, 2, 7):
        assert parse(shape, [text[i : i + step] for i in range(0, len(text), step)]) == parts
    return parts


# The form of one JSON object.


@pytest.mark.parametrize(
    ("call", "name", "arguments"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', "f", '{"a": 1}'),
        ('\n{"name": "f", "arguments": {"a":\n {"b": [1, {}]}}}\n', "f", '{"a":\n {"b": [1, {}]}}'),
        ('{"arguments": {"a": 1}, "name": "f"}', "f", '{"a": 1}'),
        ('{"name":"f","parameters":{}}', "f", "{}"),
        ('{"id": "1", "x": [{"name": "no"}], "y": -1.5e3, "name": "f", "arguments": {}}', "f", "{}"),
        ('{"name": "f", "arguments": {}, "type": "function"}', "f", "{}"),
        ('{"name": "f"}', "f", "{}"),
        ('{"name": "f", "arguments": null}', "f", "null"),
        ('{"name": "f", "arguments": {"a": "</tool_call>} \\" {"}}', "f", '{"a": "</tool_call>} \\" {"}'),
        (r'{"name": "f", "arguments": {"a": "\\"}}', "f", r'{"a": "\\"}'),
        (r'{"name": "f", "arguments": "{\"a\": \"\u00e9\ud83d\ude00\\n\"}"}', "f", '{"a": "é😀\\n"}'),
        (r'{"arguments": "{\"a\": 1}", "name": "f"}', "f", '{"a": 1}'),
        (r'{"name": "f", "arguments": "\ud83d \ud83dx \u12 \q \\"}', "f", "\ufffd \ufffdx \\u12 \\q \\"),
        (r'{"n\u0061me": "caf\u00e9 \ud800", "arguments": {}}', "café \ufffd", "{}"),
        ('{"name": "f", "arguments": {"a": 1}', "f", '{"a": 1}'),
        ('{"name": "f", "arguments": {"a": 1}}}', "f", '{"a": 1}'),
    ],
)  # fmt: skip
def test_a_call_in_hermes_form(call, name, arguments):
    parts = in_all_steps(HERMES, f"<tool_call>{call}</tool_call>")

    assert parts == [CallOpened(0, name), CallArguments(0, arguments)]


def test_white_space_around_calls_is_not_content():
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'

    parts = in_all_steps(HERMES, f"\n\n{call}\n{call} \n Well:  {call}\r\n")

    assert [part for part in parts if isinstance(part, Content)] == [Content("Well:")]
    assert calls(parts) == [("f", "{}")] * 3


@pytest.mark.parametrize(
    "text",
    [
        " no call \n",
        "<tool_call>",
        "<tool_call>\n",
        "a <tool_cal",
        "a \n <tool_call>f(x)</tool_call> \n",
        "<tool_call>[]",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}, "nam',
        '<tool_call>{"name": "f", "arguments": <',
        '<tool_call>{"name": "f", "arguments": ',
        '<tool_call>{"name" "f"}',
        "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
        "</tool_call> \n",
    ],
)
def test_what_is_no_call_is_content(text):
    assert in_all_steps(HERMES, text) == [Content(text)]


def test_a_call_after_what_is_none():
    text = 'a <tool_call> <tool_call>{"x": <tool_call>{"name": "f"}</tool_call>'

    parts = in_all_steps(HERMES, text)

    assert content(parts) == 'a <tool_call> <tool_call>{"x":'
    assert calls(parts) == [("f", "{}")]


@pytest.mark.parametrize(
    ("text", "arguments", "rest"),
    [
        ('{"name": "f", "arguments": {"a": "b\\', '{"a": "b\\', ""),
        ('{"name": "f", "arguments": "{\\"a\\": \\u00', '{"a": \\u00', ""),
        ('{"name": "f", "arguments": tru', "tru", ""),
        ('{"name": "f", "arguments": {"a": 1} oh', '{"a": 1}', "oh"),
        ('{"name": "f", "arguments": {}}\noh</tool_call>', "{}", "oh</tool_call>"),
        ('{"name": "f", "arguments": {}}\n}} oh ', "{}", "}} oh "),
        ('{"name": "f", "arguments": {}}\n</tool', "{}", "</tool"),
    ],
)
def test_what_breaks_off_keeps_what_came(text, arguments, rest):
    parts = in_all_steps(HERMES, "Well. \n<tool_call>" + text)

    assert calls(parts) == [("f", arguments)]
    assert content(parts) == "Well." + rest


def test_a_call_is_told_as_soon_as_it_is_certain():
    parser = HERMES.parser()

    assert parser.push("Well. \n<tool") == [Content("Well.")]
    assert parser.push('_call>\n{"name": "f", "arg') == []
    assert parser.push('uments": ') == []
    assert parser.push("{") == [CallOpened(0, "f"), CallArguments(0, "{")]
    assert parser.push('"a": "b') == [CallArguments(0, '"a": "b')]
    assert parser.push('c"}}\n</tool_call>') == [CallArguments(0, 'c"}')]
    assert parser.close() == []


# The form with a tag for every parameter.


def parameters(**values):
    return "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in values.items())


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("city", "Paris", "Paris"),
        ("city", ' "\\\té\n\n</param> ', ' "\\\té\n\n</param> '),
        ("city", "12", "12"),
        ("city", "", ""),
        ("days", "12", 12),
        ("days", " 12 ", 12),
        ("days", "a dozen", "a dozen"),
        ("days", "NaN", "NaN"),
        ("where", '{"x": [1,\n 2]}', {"x": [1, 2]}),
        ("where", "[" * 100_000, "[" * 100_000),
        ("unit", "C", "C"),
        ("note", "null", None),
        ("note", "12", "12"),
        ("place", "12", "12"),
        ("flag", "True", True),
        ("flag", "None", None),
        ("other", "12", 12),
        ("other", '"quoted"', '"quoted"'),
        ("other", "false", False),
        ("other", "x\n", "x\n"),
    ],
)
def test_a_parameter_has_its_schemas_type(key, text, value):
    call = f"<tool_call>\n<function=weather>\n{parameters(**{key: text})}</function>\n</tool_call>"

    parts = in_all_steps(FUNCTIONS, call) if len(call) < 1000 else parse(FUNCTIONS, [call])

    assert [(name, json.loads(arguments)) for name, arguments in calls(parts)] == [
        ("weather", {key: value})
    ]
    assert content(parts) == ""


def test_numbers_stay_as_they_are_written():
    digits = "9" * 5000
    call = f"<tool_call><function=weather>{parameters(days=digits)}</function></tool_call>"

    assert calls(parse(FUNCTIONS, [call])) == [("weather", f'{{"days": {digits}}}')]


@pytest.mark.parametrize(
    "call",
    [
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "<tool_call><function=weather><parameter=city>Paris</parameter><parameter=days>2</parameter></function></tool_call>",
        "<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>",
        "<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</tool_call>",
    ],
)
def test_a_call_in_functions_form(call):
    parts = in_all_steps(FUNCTIONS, f"Well.\n\n{call}\n\n{call}\n")

    assert content(parts) == "Well."
    assert calls(parts) == [("weather", '{"city": "Paris", "days": 2}')] * 2


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nweather",
        "<tool_call>\n<function=>",
        "<tool_call><function=weather\n>",
        "<tool_call><functio",
        "`<function=unknown>` is text",
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call>',
    ],
)
def test_what_is_no_function_is_content(text):
    assert in_all_steps(FUNCTIONS, text) == [Content(text)]


@pytest.mark.parametrize(
    ("text", "arguments", "rest"),
    [
        ("\n", "{", ""),
        ("<parameter=city", "{", ""),
        ("<parameter=city>\nPa", '{"city": "Pa', ""),
        ("<parameter=city>\nPa\n</par", '{"city": "Pa\\n</par', ""),
        ("<parameter=days>\n1", '{"days": 1', ""),
        ("<parameter=city>\nPa\n</parameter>\n oh", '{"city": "Pa"', "oh"),
    ],
)
def test_a_function_that_breaks_off_keeps_what_came(text, arguments, rest):
    parts = in_all_steps(FUNCTIONS, f"<tool_call>\n<function=weather>{text}")

    assert calls(parts) == [("weather", arguments)]
    assert content(parts) == rest


def test_a_schema_that_runs_in_circles_is_read_once():
    again = {"$ref": "#/$defs/A"}
    circle = tool("f", {"a": again}, **{"$defs": {"A": {"anyOf": [again] * 30}}})
    shape = ReplyShape(form=FunctionsForm(), tools=[circle])

    parts = parse(shape, [f"<tool_call><function=f>{parameters(a='1')}</function></tool_call>"])

    assert calls(parts) == [("f", '{"a": 1}')]


def test_an_unknown_tool_is_called_all_the_same():
    call = f"<tool_call><function=other>{parameters(a='x', b='1')}</function></tool_call>"

    assert calls(parse(FUNCTIONS, [call])) == [("other", '{"a": "x", "b": 1}')]


def test_a_string_is_told_while_it_arrives():
    parser = FUNCTIONS.parser()

    assert parser.push("<tool_call>\n<function=weather>") == [
        CallOpened(0, "weather"),
        CallArguments(0, "{"),
    ]
    assert parser.push("\n<parameter=city>\nSão ") == [CallArguments(0, '"city": "São ')]
    assert parser.push('"Paulo"\n') == [CallArguments(0, '\\"Paulo\\"')]
    assert parser.push("</parameter>\n</function>") == [CallArguments(0, '"}')]
    assert parser.push("\n</tool_call>") == []
    assert parser.close() == []


# Templates.


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (CHAT_TEMPLATE, "hermes"),
        ('{{- \'\\n<tool_call>\\n{"name": "\' }}', "hermes"),
        ('{{- "<tool_call>\\n{\\"name\\": <name>" }}', "hermes"),
        ("{{- '<tool_call>\n' }}\n{{- '{' }}{{- '\"name\": \"' }}", "hermes"),
        ("{{- '<tool_call>\\n<function=' + name + '>\\n<parameter=' }}", "functions"),
        ("{{- '<tool_call>' + name + '\\n<arg_key>' }}", None),
        ("{{- '<tool_call>[{\"name\": 1}]' }}", None),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_the_form_is_the_one_that_the_template_writes(source, form):
    found = find_form(source)

    assert (found and found.name) == form
    assert found is None or found.opening == "<tool_call>"
