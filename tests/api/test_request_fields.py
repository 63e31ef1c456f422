"""What requests may say of tools, messages and the answer's form, before any model is asked."""

from __future__ import annotations

import json

import pytest

from server.api.body import parse_model
from server.api.schemas.chat import ChatRequest
from server.api.schemas.completions import CompletionRequest
from server.core.errors import InvalidRequest
from server.gateway.spec import OutputForm, ToolChoice

USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
CHOSEN = {"type": "function", "function": {"name": "f"}}


def body(**fields):
    given = {"messages": [USER], **fields}
    return parse_model(json.dumps(given).encode(), ChatRequest)


def tool(name="f", **function):
    return {"type": "function", "function": {"name": name, **function}}


def call(number="1", arguments="{}", **more):
    given = {"id": number, "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {key: value for key, value in {**given, **more}.items() if value is not None}


def calling(*calls, **more):
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def result(number="1"):
    given = {"role": "tool", "content": "42", "tool_call_id": number}
    return {key: value for key, value in given.items() if value is not None}


def named_format(**fields):
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, **fields}}


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            OutputForm("json_object", None, "response_format"),
        ),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            OutputForm("json_schema", SCHEMA, "response_format.schema"),
        ),
        (
            {"response_format": named_format(strict=True)},
            OutputForm("json_schema", SCHEMA, "response_format.json_schema.schema"),
        ),
        ({"guided_json": SCHEMA}, OutputForm("json_schema", SCHEMA, "guided_json")),
        ({"guided_json": json.dumps(SCHEMA)}, OutputForm("json_schema", SCHEMA, "guided_json")),
        ({"json_schema": SCHEMA}, OutputForm("json_schema", SCHEMA, "json_schema")),
        ({"guided_regex": "[ab]+"}, OutputForm("regex", "[ab]+", "guided_regex")),
        ({"guided_choice": ["a", "b"]}, OutputForm("choice", ["a", "b"], "guided_choice")),
        ({"guided_grammar": 'start: "a"'}, OutputForm("lark", 'start: "a"', "guided_grammar")),
        ({"guided_grammar": 'root ::= "a"'}, OutputForm("gbnf", 'root ::= "a"', "guided_grammar")),
        ({"grammar": 'root ::= "a"'}, OutputForm("gbnf", 'root ::= "a"', "grammar")),
    ],
)
def test_the_answers_form(fields, form):
    assert body(**fields).output() == form
    assert parse_model(json.dumps(fields).encode(), CompletionRequest).output() == form


def test_a_schema_keeps_the_order_of_its_properties():
    for fields in ({"response_format": named_format()}, {"guided_json": json.dumps(SCHEMA)}):
        form = body(**fields).output()
        assert list(form.value["properties"]) == ["b", "a"]


def test_what_is_passed_on_is_what_was_sent():
    sent = {
        "messages": [USER],
        "response_format": named_format(strict=None),
        "tools": [tool(strict=None, extra=1)],
        "wibble": 3,
    }
    assert body(**sent).passed() == sent


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "text"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": named_format(name="a b")}, "response_format.json_schema.name"),
        ({"response_format": named_format(name="a" * 65)}, "response_format.json_schema.name"),
        ({"response_format": named_format(name="a\n")}, "response_format.json_schema.name"),
        ({"response_format": named_format(schema=[])}, "response_format.json_schema.schema"),
        ({"response_format": named_format(strict="no")}, "response_format.json_schema.strict"),
        ({"response_format": {"type": "json_object", "schema": 1}}, "response_format.schema"),
        ({"guided_json": 3}, "guided_json"),
        ({"guided_json": []}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[" * 100_000}, "guided_json"),
        ({"guided_json": json.dumps({"title": "x" * 256 * 1024})}, "guided_json"),
        ({"guided_json": '{"maximum": NaN}'}, "guided_json"),
        ({"guided_json": "true"}, "guided_json"),
        ({"json_schema": "x"}, "json_schema"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": 3}, "guided_regex"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a"] * 1001}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice[1]"),
        ({"guided_choice": ["a", 3]}, "guided_choice[1]"),
        ({"guided_grammar": " "}, "guided_grammar"),
        ({"grammar": ""}, "grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= x"}, "grammar"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_a_wrong_form_is_named(fields, param):
    for model in (ChatRequest, CompletionRequest):
        with pytest.raises(InvalidRequest) as caught:
            parse_model(json.dumps({"messages": [USER], **fields}).encode(), model).output()
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"response_format": named_format()}, "response_format"),
        ({"guided_regex": "a"}, "guided_regex"),
    ],
)
@pytest.mark.parametrize("choice", ["required", CHOSEN])
def test_a_form_and_calls_that_have_to_come_exclude_each_other(form, param, choice):
    with pytest.raises(InvalidRequest) as caught:
        body(tools=[tool()], tool_choice=choice, **form).output()
    assert caught.value.param == param


@pytest.mark.parametrize("choice", [None, "auto"])
def test_an_answer_may_be_calls_or_json_but_no_other_form(choice):
    asked = body(tools=[tool()], tool_choice=choice, response_format=named_format())
    assert asked.output().kind == "json_schema"
    assert asked.prompt().tools == [tool()]
    with pytest.raises(InvalidRequest) as caught:
        body(tools=[tool()], tool_choice=choice, guided_regex="a").output()
    assert caught.value.param == "guided_regex"
    assert body(response_format=named_format()).prompt().tools is None, "an agent's own are offered"


def test_a_form_goes_with_tools_that_are_not_called():
    asked = body(tools=[tool()], tool_choice="none", guided_regex="a")
    assert asked.output().kind == "regex"
    assert asked.prompt().tools == []
    assert body(guided_regex="a").prompt().tools == [], "an agent's own tools could not be called"
    assert body().prompt().tools is None
    assert body(response_format={"type": "text"}).prompt().tools is None


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, ToolChoice()),
        ({"tool_choice": "none"}, ToolChoice("none")),
        ({"tools": [tool()]}, ToolChoice("auto")),
        ({"tools": [tool()], "tool_choice": "auto"}, ToolChoice("auto")),
        ({"tools": [tool()], "tool_choice": "required"}, ToolChoice("required")),
        ({"tools": [tool("g"), tool()], "tool_choice": CHOSEN}, ToolChoice("named", "f")),
        ({"tool_choice": CHOSEN}, ToolChoice("named", "f")),
        ({"tools": [tool()], "parallel_tool_calls": False}, ToolChoice(parallel=False)),
        ({"parallel_tool_calls": True, "tool_choice": "required"}, ToolChoice("required")),
    ],
)
def test_the_choice_of_tools(fields, choice):
    assert body(**fields).choice() == choice


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": 3}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": []}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [tool("g")], "tool_choice": CHOSEN}, "tool_choice.function.name"),
        ({"tools": [], "tool_choice": CHOSEN}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()] * 2}, "tools[1].function.name"),
        ({"tools": [tool("a"), tool("b"), tool("c"), tool("b")]}, "tools[3].function.name"),
        ({"tools": [tool(f"f{number}") for number in range(10_000)]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [tool(), {"type": "custom", "custom": {"name": "x"}}]}, "tools[1].type"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function"),
        ({"tools": [tool(None)]}, "tools[0].function.name"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a\n")]}, "tools[0].function.name"),
        ({"tools": [tool("a" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool(description=3)]}, "tools[0].function.description"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "array"})]}, "tools[0].function.parameters.type"),
        ({"tools": [tool(parameters={"type": ["object"]})]}, "tools[0].function.parameters.type"),
    ],
)
def test_wrong_tools_are_named(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        body(**fields).prompt()
    assert caught.value.param == param


def test_tools_lose_their_nulls_and_nothing_else():
    given = tool(parameters=SCHEMA, strict=None, description=None, extra=1)
    (shown,) = body(tools=[given]).prompt().tools
    assert shown == tool(parameters=SCHEMA, extra=1)
    assert body(tools=[tool(f"f{number}") for number in range(512)]).prompt().tools[511]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, result()], "messages[1].tool_call_id"),
        ([result()], "messages[0].tool_call_id"),
        ([USER, {"role": "assistant", "content": "x"}, result()], "messages[2].tool_call_id"),
        ([USER, calling(call()), result("2")], "messages[2].tool_call_id"),
        ([USER, calling(call()), result(), result()], "messages[3].tool_call_id"),
        ([USER, calling(call()), result(), USER, result()], "messages[4].tool_call_id"),
        ([USER, calling(call(), call("2")), result(None)], "messages[2].tool_call_id"),
        ([USER, calling(call()), result(), result(None)], "messages[3].tool_call_id"),
        ([USER, calling(call(), call())], "messages[1].tool_calls[1].id"),
        ([USER, calling(call([3])), result()], "messages[1].tool_calls[0].id"),
        ([USER, calling(call())], "messages[1].tool_calls[0].id"),
        ([USER, calling(call(), call("2")), result(), USER], "messages[1].tool_calls[1].id"),
        ([USER, calling(call()), USER, result()], "messages[1].tool_calls[0].id"),
        (
            [USER, calling(call()), {"role": "system", "content": "x"}, result()],
            "messages[1].tool_calls[0].id",
        ),
        ([{**USER, "tool_calls": [call()]}], "messages[0].tool_calls"),
        ([USER, calling(call(type="custom")), result()], "messages[1].tool_calls[0].type"),
        ([USER, calling({"id": "1"}), result()], "messages[1].tool_calls[0]"),
        ([USER, calling(3), result()], "messages[1].tool_calls[0]"),
        (
            [USER, calling(call(arguments=[])), result()],
            "messages[1].tool_calls[0].function.arguments",
        ),
        ([{"role": "function", "name": "f", "content": "x"}], "messages[0].role"),
        (
            [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}],
            "messages[0].function_call",
        ),
        ([{"role": "assistant", "audio": {"id": "x"}}], "messages[0].audio"),
        ([{"role": "assistant", "refusal": 3}], "messages[0].refusal"),
        ([{"role": "boss", "content": "x"}], "messages[0].role"),
        ([], "messages"),
        ([*[USER, calling(call()), result()] * 30_000, result()], "messages[90000].tool_call_id"),
    ],
)
def test_messages_out_of_order_are_named(messages, param):
    with pytest.raises(InvalidRequest) as caught:
        body(messages=messages).prompt()
    assert caught.value.param == param


def test_results_may_come_in_any_order_and_ids_again():
    turn = [calling(call("a"), call("b")), result("b"), result("a")]
    messages = [USER, *turn, *turn, {"role": "assistant", "content": "done"}, USER]
    assert len(body(messages=messages).prompt().messages) == 9


@pytest.mark.parametrize(("given", "shown"), [("1", "1"), (None, None)])
def test_the_only_call_needs_no_id_in_its_result(given, shown):
    prompt = body(messages=[USER, calling(call(given)), result(None), USER]).prompt()
    assert prompt.messages[2].get("tool_call_id") == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ('{"x": 1}', '{"x": 1}'),
        ({"x": "ä"}, '{"x": "ä"}'),
        ('{"x": ', '{"x": '),
        ("[1]", "[1]"),
        ("", "{}"),
        (None, "{}"),
    ],
)
def test_arguments_become_text_even_broken_ones(given, shown):
    messages = body(messages=[USER, calling(call(arguments=given)), result()]).prompt().messages
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == shown


def test_a_refusal_is_what_the_assistant_said():
    said = {"role": "assistant", "content": None, "refusal": "no"}
    assert body(messages=[USER, said, USER]).prompt().messages[1] == {
        "role": "assistant",
        "content": "no",
    }


def test_budgets_of_reasoning():
    assert body().thinking() is None
    assert body(thinking_token_budget=0).thinking() == 0
    assert body(thinking_budget=5).thinking() == 5
    assert body(thinking_budget=5, thinking_token_budget=5).thinking() == 5
    for fields in ({"thinking_budget": 4, "thinking_token_budget": 5}, {"thinking_budget": -1}):
        with pytest.raises(InvalidRequest) as caught:
            body(**fields).thinking()
        assert caught.value.param == "thinking_budget"


def test_two_opinions_about_the_template_are_refused():
    agreed = body(enable_thinking=True, chat_template_kwargs={"enable_thinking": True, "x": 1})
    assert agreed.prompt().template_kwargs == {"enable_thinking": True, "x": 1}
    with pytest.raises(InvalidRequest) as caught:
        body(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"}).prompt()
    assert caught.value.param == "reasoning_effort"
    with pytest.raises(InvalidRequest) as caught:
        body(reasoning_effort="much")
    assert caught.value.param == "reasoning_effort"


def test_copies_that_sdks_send_back_are_not_shown_to_the_template():
    copied = call()
    copied["index"] = 0
    copied["function"] = {**copied["function"], "parsed_arguments": {}, "other": 1}
    said = calling(copied, parsed={"a": 1}, annotations=[], other=1)
    shown = body(messages=[USER, said, result()]).prompt().messages[1]
    plain = call()
    plain["function"] = {**plain["function"], "other": 1}
    assert shown == {"role": "assistant", "content": "", "tool_calls": [plain], "other": 1}
