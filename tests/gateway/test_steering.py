"""What the engine is told of an answer: reasoning, constraints, and how it will be taken apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.chat.json_schema import check_schema
from server.chat.template import ChatTemplate
from server.core.errors import InvalidRequest
from server.gateway import steering
from server.gateway.spec import ChatPrompt, GenerationSpec, OutputForm, ToolChoice
from server.gateway.steering import Steerer, held
from server.gateway.written import Written
from tests.fakes import CHAT_TEMPLATE, CONTROL, MARKERS, FakeTokenizer

HELLO = {"role": "user", "content": "hello"}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name, schema=None, **more):
    function = {"name": name, "parameters": CITY if schema is None else schema, **more}
    return {"type": "function", "function": function}


def spec_of(prompt, **fields):
    return GenerationSpec(request_id="r", model=None, prompts=[prompt], **fields)


def steerer(tools=(), *, source=CHAT_TEMPLATE, tokenizer=None, kwargs=None, **fields):
    tokenizer = tokenizer or FakeTokenizer()
    prompt = ChatPrompt([HELLO], list(tools), kwargs or {})
    return Steerer(
        spec_of(prompt, **fields),
        prompt,
        tools,
        ChatTemplate(source, tokenizer),
        tokenizer,
        Written(),
    ), tokenizer


def steered(tools=(), *, source=CHAT_TEMPLATE, **fields):
    """Steer the answer to a prompt that the template has written."""
    one, tokenizer = steerer(tools, source=source, **fields)
    tokens = ChatTemplate(source, tokenizer).encode([HELLO], tools, one.kwargs())
    return one.steer(tokens, one.constraint())


def follow(constraint, text, tokenizer):
    """Whether the grammar takes `text` as a whole, and nothing may follow."""
    matcher = constraint.grammar.begin()
    tokens = tokenizer.encode(text, parse_special=True)
    taken = matcher.validate_tokens(tokens)
    if taken < len(tokens):
        return False
    matcher.consume_tokens(tokens)
    return matcher.is_accepting()


# Reasoning


def test_an_answer_may_begin_with_reasoning():
    one = steered()
    assert one.shape.thinking == "possible"
    assert (one.thinking.start, one.thinking.end) == (MARKERS["<think>"], MARKERS["</think>"])
    assert not one.thinking.inside
    assert one.thinking.budget is None
    assert MARKERS["</think>"] in one.thinking.closing


def test_a_closed_block_leaves_nothing_to_think():
    one = steered(kwargs={"enable_thinking": False})
    assert one.thinking is None
    assert one.shape.thinking == "none"


def test_a_prompt_that_opens_the_block():
    one = steered(source=CHAT_TEMPLATE + "{{ '<think>\\n' }}")
    assert one.thinking.inside
    assert one.shape.thinking == "inside"


def test_words_of_the_user_open_no_block():
    source = "{{ messages[0].content }}{# <think> #}"
    tokenizer = FakeTokenizer()
    template = ChatTemplate(source, tokenizer)
    prompt = ChatPrompt([{"role": "user", "content": "<think>"}])
    one = Steerer(spec_of(prompt), prompt, (), template, tokenizer, Written())
    assert not one.steer(template.encode(prompt.messages), None).thinking.inside


def test_a_model_that_does_not_reason():
    plain = "{{ messages[0].content }}"
    assert steered(source=plain).shape.thinking == "none"
    assert steered(source=plain, kwargs={"enable_thinking": False}).thinking is None
    with pytest.raises(InvalidRequest) as caught:
        steered(source=plain, kwargs={"enable_thinking": True})
    assert caught.value.param == "enable_thinking"


@pytest.mark.parametrize(
    ("effort", "budget"),
    [("minimal", 256), ("low", 1024), ("medium", 4096), ("high", None), ("xhigh", None)],
)
def test_efforts_are_budgets_where_the_template_knows_none(effort, budget):
    one, _ = steerer(kwargs={"reasoning_effort": effort})
    assert "reasoning_effort" not in one.kwargs()
    assert steered(kwargs={"reasoning_effort": effort}).thinking.budget == budget


def test_no_effort_closes_the_block():
    one, _ = steerer(kwargs={"reasoning_effort": "none"})
    assert one.kwargs() == {"enable_thinking": False}
    assert steered(kwargs={"reasoning_effort": "none"}).thinking is None
    deaf = CHAT_TEMPLATE.replace("enable_thinking", "never")
    assert steered(source=deaf, kwargs={"reasoning_effort": "none"}).thinking.budget == 0
    assert steered(source=deaf, kwargs={"enable_thinking": False}).thinking.budget == 0


def test_efforts_are_the_templates_where_it_knows_them():
    source = CHAT_TEMPLATE + "{{ reasoning_effort }}"
    one, _ = steerer(source=source, kwargs={"reasoning_effort": "low"})
    assert one.kwargs() == {"reasoning_effort": "low"}
    assert steered(source=source, kwargs={"reasoning_effort": "low"}).thinking.budget is None


def test_a_budget_of_its_own_wins():
    assert steered(kwargs={"reasoning_effort": "low"}, thinking_budget=7).thinking.budget == 7


# Tools


def test_without_tools_nothing_is_a_call():
    one = steered()
    assert one.shape.form is None
    assert one.constraint is None


def test_calls_at_will_are_held_from_their_tag_on():
    one = steered([tool("look", strict=True), tool("see")])
    tokenizer = FakeTokenizer()
    assert one.constraint.trigger == MARKERS["<tool_call>"]
    assert not one.constraint.once
    assert one.shape.form is not None
    call = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
    assert follow(one.constraint, call.format("look", '{"city": "a"}'), tokenizer)
    assert not follow(one.constraint, call.format("look", '{"town": "a"}'), tokenizer)
    assert follow(one.constraint, call.format("see", '{"town": "a"}'), tokenizer)
    assert not follow(one.constraint, call.format("hear", "{}"), tokenizer)
    once = steered([tool("look")], tool_choice=ToolChoice(parallel=False))
    assert once.constraint.once


def test_required_calls_are_held_to_their_schemas_from_the_start():
    tokenizer = FakeTokenizer()
    one = steered([tool("look"), tool("see")], tool_choice=ToolChoice("required"))
    assert one.constraint.trigger is None
    call = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
    good = call.format("look", '{"city": "a"}')
    assert follow(one.constraint, good, tokenizer)
    other = call.format("see", '{"city": "b"}')
    assert follow(one.constraint, f"{good}\n{other}", tokenizer)
    assert not follow(one.constraint, call.format("look", "{}"), tokenizer)
    assert not follow(one.constraint, "Hello", tokenizer)
    single = steered([tool("look")], tool_choice=ToolChoice("required", parallel=False))
    assert follow(single.constraint, good, tokenizer)
    assert not follow(single.constraint, f"{good}\n{good}", tokenizer)


def test_a_named_call_is_that_one():
    tokenizer = FakeTokenizer()
    tools = [tool("look"), tool("see")]
    one = steered(tools, tool_choice=ToolChoice("named", "see"))
    call = '<tool_call>\n{{"name": "{}", "arguments": {{"city": "a"}}}}\n</tool_call>'
    assert follow(one.constraint, call.format("see"), tokenizer)
    assert not follow(one.constraint, call.format("look"), tokenizer)
    with pytest.raises(InvalidRequest) as caught:
        steered(tools, tool_choice=ToolChoice("named", "hear"))
    assert caught.value.param == "tool_choice.function.name"


def test_no_call_is_no_call():
    one = steered([tool("look")], tool_choice=ToolChoice("none"))
    assert one.constraint is None
    assert one.shape.form is None


@pytest.mark.parametrize("mode", ["required", "named"])
def test_a_call_needs_tools(mode):
    with pytest.raises(InvalidRequest) as caught:
        steered(tool_choice=ToolChoice(mode, "look"))
    assert caught.value.param == "tool_choice"


def test_a_template_without_a_place_for_tools():
    with pytest.raises(InvalidRequest, match="no place for tools") as caught:
        steered([tool("look")], source="{{ messages[0].content }}")
    assert caught.value.param == "tools"


def test_a_form_of_calls_that_is_not_known():
    with pytest.raises(InvalidRequest, match="not known") as caught:
        steered([tool("look")], source="{{ tools | tojson }}{{ messages[0].content }}")
    assert caught.value.param == "tools"


def test_a_vocabulary_without_the_tag_enforces_where_a_call_has_to_come():
    marks = {text: token for text, token in MARKERS.items() if "tool_call" not in text}
    packed = {text: 259 + place for place, text in enumerate(marks)}
    tokenizer = FakeTokenizer(CONTROL, packed)
    free = steered([tool("look")], tokenizer=tokenizer)
    assert free.constraint is None
    assert free.shape.form is not None
    held_one = steered([tool("look")], tokenizer=tokenizer, tool_choice=ToolChoice("required"))
    assert follow(
        held_one.constraint,
        '<tool_call>\n{"name": "look", "arguments": {"city": "a"}}\n</tool_call>',
        tokenizer,
    )
    with pytest.raises(InvalidRequest) as caught:
        steered([tool("see"), tool("look", strict=True)], tokenizer=tokenizer)
    assert caught.value.param == "tools[1].function.strict"
    with pytest.raises(InvalidRequest) as caught:
        steered([tool("look")], tokenizer=tokenizer, tool_choice=ToolChoice(parallel=False))
    assert caught.value.param == "parallel_tool_calls"


def test_a_schema_that_cannot_be_enforced_names_its_tool():
    bad = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(InvalidRequest, match="uniqueItems") as caught:
        steered([tool("look"), tool("see", bad)], tool_choice=ToolChoice("required"))
    assert caught.value.param.startswith("tools[1].function.parameters")
    assert steered([tool("see", bad)]).constraint is not None  # at will and not strict: any object


def test_an_answer_may_be_calls_or_json_of_a_form():
    tokenizer = FakeTokenizer()
    output = OutputForm(
        "json_schema", {"type": "array", "items": {"type": "boolean"}}, "response_format"
    )
    one = steered([tool("look", strict=True)], output=output)
    call = '<tool_call>\n{"name": "look", "arguments": {"city": "a"}}\n</tool_call>'
    assert one.constraint.trigger is None
    assert one.shape.form is not None
    assert follow(one.constraint, call, tokenizer)
    assert follow(one.constraint, f"{call}\n{call}", tokenizer)
    assert follow(one.constraint, "[true, false]", tokenizer)
    assert not follow(one.constraint, f"{call}\n[true]", tokenizer)
    assert not follow(one.constraint, "Hello", tokenizer)
    single = steered([tool("look")], output=output, tool_choice=ToolChoice(parallel=False))
    assert not follow(single.constraint, f"{call}\n{call}", tokenizer)


def test_any_json_beside_calls_is_written_as_it_is_alone():
    tokenizer = FakeTokenizer()
    output = OutputForm("json_object", None, "response_format")
    for tools in ([], [tool("look")]):
        one = steered(tools, output=output)
        assert follow(one.constraint, '{"a": 1}', tokenizer)
        assert not follow(one.constraint, '{"a":1}', tokenizer)
        assert not follow(one.constraint, '{\n"a": 1}', tokenizer)


# Forms


@pytest.mark.parametrize(
    ("output", "good", "bad"),
    [
        (OutputForm("json_object", None, "response_format"), '{"a": [1]}', "[1]"),
        (OutputForm("json_schema", CITY, "response_format"), '{"city": "Rom"}', "{}"),
        (OutputForm("regex", "[ab]/c", "guided_regex"), "b/c", "b"),
        (OutputForm("choice", ["yes", 'no "\n'], "guided_choice"), 'no "\n', "maybe"),
        (OutputForm("lark", 'start: "x" /[0-9]+/', "guided_grammar"), "x12", "x"),
        (OutputForm("gbnf", 'root ::= "x" [0-9]+', "grammar"), "x12", "x"),
    ],
)
def test_a_form_holds_the_whole_answer(output, good, bad):
    tokenizer = FakeTokenizer()
    one = steered(output=output)
    assert one.constraint.trigger is None
    assert one.thinking is not None  # what is thought before is free
    for constraint in (one.constraint, held(output, tokenizer, Written()).constraint):
        assert follow(constraint, good, tokenizer)
        assert not follow(constraint, bad, tokenizer)


@pytest.mark.parametrize(
    "output",
    [
        OutputForm("json_schema", {"not": {}}, "response_format.json_schema.schema"),
        OutputForm("regex", "(", "guided_regex"),
        OutputForm("lark", "start: nothing", "guided_grammar"),
        OutputForm("gbnf", "root ::= (", "grammar"),
    ],
)
def test_what_cannot_be_enforced_names_its_field(output):
    with pytest.raises(InvalidRequest) as caught:
        steered(output=output)
    assert caught.value.param.startswith(output.param)


def test_what_is_free_costs_nothing():
    one = steered(source="{{ messages[0].content }}")
    assert one == replace(one, thinking=None, constraint=None)


FUNCTIONS = (
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ messages[0].content }}"
    "{# <tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call> #}"
)


def test_calls_with_tagged_parameters_are_held_to_their_schemas_too():
    tokenizer = FakeTokenizer()
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 2},
            "day": {"type": "string", "format": "date"},
            "count": {"type": "integer", "minimum": 1, "maximum": 9},
            "kind": {"$ref": "#/$defs/Kind"},
            "more": {
                "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Kind"}}, {"type": "null"}],
                "default": None,
            },
        },
        "required": ["city", "count"],
        "additionalProperties": False,
        "$defs": {"Kind": {"enum": ["a", "b"], "type": "string", "title": "Kind"}},
    }
    one = steered([tool("look", schema)], source=FUNCTIONS, tool_choice=ToolChoice("required"))

    def call(**values):
        told = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()
        )
        return f"<tool_call>\n<function=look>\n{told}</function>\n</tool_call>"

    assert follow(one.constraint, call(city="Rom", count=3), tokenizer)
    assert follow(
        one.constraint,
        call(city="Rom", day="2026-02-28", count=3, kind="b", more='["a"]'),
        tokenizer,
    )
    assert not follow(one.constraint, call(city="R", count=3), tokenizer)
    assert not follow(one.constraint, call(city="Rom", count=10), tokenizer)
    assert not follow(one.constraint, call(city="Rom", day="2026-02-30", count=3), tokenizer)
    assert not follow(one.constraint, call(city="Rom", count=3, kind="c"), tokenizer)
    assert not follow(one.constraint, call(city="Rom", count=3, more='["c"]'), tokenizer)
    assert not follow(one.constraint, call(count=3), tokenizer)


def test_variables_are_what_the_server_understands():
    for kwargs, param in (
        ({"enable_thinking": "false"}, "chat_template_kwargs.enable_thinking"),
        ({"reasoning_effort": ["low"]}, "chat_template_kwargs.reasoning_effort"),
        ({"reasoning_effort": "lowest"}, "chat_template_kwargs.reasoning_effort"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            steered(kwargs=kwargs)
        assert caught.value.param == param
    # A template that knows efforts has words of its own for them.
    source = CHAT_TEMPLATE + "{{ reasoning_effort }}"
    one, _ = steerer(source=source, kwargs={"reasoning_effort": "lowest"})
    assert one.kwargs() == {"reasoning_effort": "lowest"}


def test_strict_mode_refuses_what_the_template_does_not_look_at():
    plain = "{{ messages[0].content }}"
    for source, kwargs, param in (
        (CHAT_TEMPLATE, {"colour": "red"}, "chat_template_kwargs.colour"),
        (plain, {"reasoning_effort": "low"}, "reasoning_effort"),
    ):
        assert steered(source=source, kwargs=kwargs).constraint is None
        with pytest.raises(InvalidRequest) as caught:
            steered(source=source, kwargs=kwargs, strict=True)
        assert caught.value.param == param
    taken: list[tuple[str, dict[str, Any]]] = [
        (CHAT_TEMPLATE + "{{ colour }}", {"colour": "red"}),
        (CHAT_TEMPLATE, {"enable_thinking": False, "reasoning_effort": "low"}),
        (plain, {"enable_thinking": False, "reasoning_effort": "none"}),
    ]
    for source, kwargs in taken:
        assert steered(source=source, kwargs=kwargs, strict=True).constraint is None


@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
@pytest.mark.parametrize("shown", [False, True])
def test_strict_mode_refuses_names_that_are_not_shown(role, shown):
    named = "{% for m in messages %}{{ m.name }}{{ m.content }}{% endfor %}"
    tokenizer = FakeTokenizer()
    template = ChatTemplate(named if shown else named.replace("{{ m.name }}", ""), tokenizer)
    prompt = ChatPrompt([HELLO, {"role": role, "content": "x", "name": "Ada"}])
    one = Steerer(spec_of(prompt, strict=True), prompt, (), template, tokenizer, Written())
    if shown or role == "tool":
        assert one.kwargs() == {}
        return
    with pytest.raises(InvalidRequest) as caught:
        one.kwargs()
    assert caught.value.param == "messages[1].name"


def test_reasoning_without_markers_in_the_vocabulary_cannot_be_bounded():
    one, _ = steerer(tokenizer=FakeTokenizer(markers={}), thinking_budget=5)
    with pytest.raises(InvalidRequest) as caught:
        one.steer([1], None)
    assert caught.value.param == "thinking_token_budget"


def test_an_answer_that_ends_with_its_call_cannot_go_on():
    required, once = ToolChoice("required"), ToolChoice("auto", parallel=False)
    for choice in (required, once):
        with pytest.raises(InvalidRequest) as caught:
            steered([tool("f")], tool_choice=choice, ignore_eos=True)
        assert caught.value.param == "ignore_eos"
    assert steered([tool("f")], ignore_eos=True).constraint is not None


def test_a_schema_is_read_once_for_all_requests_that_send_it(monkeypatch):
    asked = []

    def check(schema, param):
        asked.append(param)
        return check_schema(schema, param)

    monkeypatch.setattr(steering, "check_schema", check)
    tokenizer, written = FakeTokenizer(), Written()
    prompt = ChatPrompt([HELLO])
    for param in ("response_format", "guided_json", "response_format"):
        spec = spec_of(prompt, output=OutputForm("json_schema", CITY, param))
        template = ChatTemplate(CHAT_TEMPLATE, tokenizer)
        one = Steerer(spec, prompt, (), template, tokenizer, written)
        assert follow(one.constraint(), '{"city": "Rom"}', tokenizer)
    assert asked == ["response_format"]
