"""What the grammars of calls allow is read as calls whose arguments their schemas accept."""

import json
import random
from typing import cast

import jsonschema
import numpy as np
import pytest

from server.chat.forms.functions import FunctionsForm
from server.chat.forms.hermes import HermesForm
from server.chat.shape import ReplyShape
from server.core.errors import InvalidRequest
from server.engine.grammar import GrammarSource
from server.llama.grammar import LlamaGrammar
from tests.chat.replies import calls, content, parse, tool
from tests.fakes import CONTROL, MARKERS, FakeTokenizer

FORMS = [HermesForm(), FunctionsForm()]
CLOSERS = [b"\n</parameter>\n", b'"', b"}", b"]", b"</function>", b"</tool_call>", b"\n"]
EOS = 258

CLOSED = {"additionalProperties": False}
TOOLS = [
    tool("nothing", {}, **CLOSED),
    tool(
        "strings",
        {
            "free": {"type": "string", "description": 'a "quoted" one'},
            "short": {"type": "string", "minLength": 2, "maxLength": 5},
            "code": {"type": "string", "pattern": "^[A-Z]{2}/[0-9]+$"},
            "moment": {"type": "string", "format": "date-time"},
            "inner": {"type": "string", "pattern": "[a-q]\\.|x"},
            "unit": {"enum": ["C", 'F "x"', "é\n<", "\\"]},
            "fixed": {"const": "yes"},
        },
        required=["short", "code", "unit"],
        **CLOSED,
    ),
    tool(
        "values",
        {
            "count": {"type": "integer", "minimum": 3, "maximum": 12},
            "flag": {"type": "boolean"},
            "list": {"type": "array", "items": {"$ref": "#/$defs/Point"}, "maxItems": 2},
            "where": {"$ref": "#/$defs/Point"},
            "level": {"enum": [1, 2, None]},
        },
        required=["count", "where"],
        **CLOSED,
        **{
            "$defs": {
                "Point": {
                    "type": "object",
                    "properties": {"x": {"type": "integer"}, "name": {"type": "string"}},
                    "required": ["x"],
                    **CLOSED,
                }
            }
        },
    ),
    tool(
        "mixed",
        {
            "note": {"type": ["string", "null"], "maxLength": 4},
            "name": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]},
            "many": {"type": ["string", "array"], "minLength": 1},
            "mode": {"enum": ["auto", 1, True, None]},
            "any": {},
            "twin": {"enum": ["1", 1, "null", "x"]},
            "not_a": {"type": "string", "not": {"const": "a"}, "minLength": 1, "maxLength": 2},
            "one": {"oneOf": [{"type": "string", "pattern": "^[0-9]+$"}, {"type": "number"}]},
            "alias": {"allOf": [{"$ref": "#/$defs/Alias"}], "description": "short"},
            "day": {"type": "string", "format": "date"},
            "id": {"type": "string", "format": "uuid"},
        },
        required=["note", "either", "mode", "any"],
        **CLOSED,
        **{"$defs": {"Alias": {"anyOf": [{"enum": ["al", ""]}, {"type": "null"}]}}},
    ),
]
BARE = FakeTokenizer(markers={})
FULL = FakeTokenizer()


def begin(tokenizer, lark):
    return cast("LlamaGrammar", tokenizer.grammars.compile(GrammarSource("lark", lark))).begin()


def walk(tokenizer, lark, seed):
    """A random text of the grammar, told to come to an end after some steps."""
    rng = random.Random(seed)
    matcher = begin(tokenizer, lark)
    tokens: list[int] = []
    patience = rng.randrange(400)
    for step in range(4000):
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: tokenizer.n_vocab])
        assert len(allowed), (matcher.get_error(), tokenizer.decode(tokens, special=True))
        token = choose(rng, allowed.tolist(), tokenizer.decode(tokens), step > patience)
        if token in tokenizer.eog:
            return tokenizer.decode(tokens, special=True).decode()
        tokens.append(token)
        assert matcher.consume_token(token)
    raise AssertionError(tokenizer.decode(tokens, special=True))


def choose(rng, allowed, text, in_a_hurry):
    if in_a_hurry and rng.random() < 0.8:
        if special := [token for token in allowed if token >= 256]:
            return special[-1] if EOS not in special else EOS
        for closer in CLOSERS:
            done = max(k for k in range(len(closer)) if text.endswith(closer[:k]))
            if closer[done] in allowed:
                return closer[done]
    readable = [token for token in allowed if 32 <= token < 127 or token >= 256]
    return rng.choice(readable if readable and rng.random() < 0.9 else allowed)


def validate(parts, tools, form):
    assert content(parts) == ""
    by_name = {each["function"]["name"]: each["function"]["parameters"] for each in tools}
    for name, arguments in calls(parts):
        checker = jsonschema.Draft202012Validator(
            by_name[name], format_checker=jsonschema.FormatChecker()
        )
        checker.validate(json.loads(arguments))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("tokenizer", [FULL, BARE], ids=["special", "literal"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("only", [None, *(each["function"]["name"] for each in TOOLS)])
def test_what_the_grammar_allows_are_calls_that_validate(form, tokenizer, many, only):
    special = {**tokenizer.control_tokens, **tokenizer.marker_tokens}
    lark = form.grammar(TOOLS, special=special, enforce=lambda _: True, many=many, only=only)

    for seed in range(12):
        text = walk(tokenizer, lark, seed)
        parts = parse(ReplyShape(form=form, tools=TOOLS), [text])
        validate(parts, TOOLS, form)
        found = calls(parts)
        assert found
        assert many or len(found) == 1
        assert only is None or {name for name, _ in found} == {only}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_without_enforcement_arguments_are_an_object(form):
    tools = [*TOOLS, tool("undescribed")]
    lark = form.grammar(tools, special=MARKERS, enforce=lambda _: False, many=False)

    names = set()
    for seed in range(40):
        parts = parse(ReplyShape(form=form, tools=tools), [walk(FULL, lark, seed)])
        assert content(parts) == ""
        [(name, arguments)] = calls(parts)
        names.add(name)
        assert isinstance(json.loads(arguments), dict)
        if form.name == "functions" and name == "strings":
            assert (
                json.loads(arguments).keys()
                <= TOOLS[1]["function"]["parameters"]["properties"].keys()
            )
    assert names == {each["function"]["name"] for each in tools}


def accepts(lark, text):
    matcher = begin(FULL, lark)
    tokens = FULL.encode(text, parse_special=True)
    return matcher.validate_tokens(tokens) == len(tokens) and (
        matcher.consume_tokens(tokens) and matcher.is_accepting()
    )


@pytest.mark.parametrize(
    ("form", "call"),
    [
        (HermesForm(), '{"name": "values", "arguments": {"count": 5, "where": {"x": 1}}}'),
        (
            FunctionsForm(),
            "<function=values>\n<parameter=count>\n5\n</parameter>\n"
            '<parameter=where>\n{"x": 1}\n</parameter>\n</function>',
        ),
    ],
    ids=["hermes", "functions"],
)
def test_calls_as_templates_write_them_are_allowed(form, call):
    one = f"<tool_call>\n{call}\n</tool_call>"
    other = one.replace("values", "unknown")
    enforced = [
        form.grammar(TOOLS, special=MARKERS, enforce=lambda _: True, many=m) for m in (0, 1)
    ]
    free = [form.grammar(TOOLS, special=MARKERS, enforce=lambda _: False, many=m) for m in (0, 1)]

    for single, several in (enforced, free):
        assert accepts(single, one)
        assert accepts(several, one)
        assert accepts(several, f"{one}\n{one}")
        assert not accepts(single, f"{one}\n{one}")
        assert not accepts(single, other)
    assert accepts(free[0], one.replace("5", '"x"'))
    assert not accepts(enforced[0], one.replace("5", "55"))


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        ({"type": "string"}, ["", "1", "null", "\n a \n", "</param>"], []),
        ({"type": "string", "maxLength": 2}, ["é😀", "1"], ["abc"]),
        ({"type": "string", "pattern": "b"}, ["abc", "b"], ["ac", ""]),
        ({"type": "string", "pattern": "^b"}, ["bc"], ["ab"]),
        ({"type": "string", "pattern": "b\\$$"}, ["ab$"], ["ab", "b$a"]),
        ({"type": "string", "pattern": "a/b\\\\"}, ["a/b\\"], ["a/b"]),
        ({"anyOf": [{"enum": ["a", ""]}, {"type": "string", "pattern": "^x"}]}, ["a", "", "xy"], ["y"]),
        ({"type": "string", "not": {"const": "a"}}, ["b", "aa"], ["a"]),
        ({"type": ["string", "null"]}, ["Paris", "2024", "null", "nullable"], ["None", "null "]),
        ({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]}, ["7", "x", "true"], ["3", "7.5", "7 x"]),
        ({"type": ["string", "array"]}, ["[]", "x", "1"], ["[", "[x]"]),
        ({"type": ["string", "object"]}, ["{}", "x"], ["{x"]),
        ({"type": ["string", "boolean"]}, ["true", "truth"], ["True"]),
        ({"enum": ["1", 1, "a", None]}, ["1", "a", "null"], ["2", "None", '"a"']),
        ({"anyOf": [{"$ref": "#/$defs/S"}, {"$ref": "#/$defs/S"}]}, ["s", "1"], ["t"]),
        ({"type": "integer"}, ["1"], ["x", '"1"', "1.5"]),
        ({"type": "array", "items": {"type": "string"}}, ['["a", "b"]'], ["[1]", "a"]),
        ({}, ["", "1", "{", "x"], []),
        (True, ["x"], []),
    ],
)  # fmt: skip
def test_a_parameters_text_is_what_its_schema_admits(schema, allowed, refused):
    definitions = {"S": {"type": "string", "enum": ["s", "1"]}}
    tools = [tool("f", {"p": schema}, required=["p"], **CLOSED, **{"$defs": definitions})]
    lark = FunctionsForm().grammar(tools, special=MARKERS, enforce=lambda _: True, many=False)

    def call(text):
        return (
            f"<tool_call><function=f>\n<parameter=p>\n{text}\n</parameter>\n</function></tool_call>"
        )

    assert [text for text in allowed if not accepts(lark, call(text))] == []
    assert [text for text in refused if accepts(lark, call(text))] == []
    for text in allowed:
        validate(parse(ReplyShape(form=FunctionsForm(), tools=tools), [call(text)]), tools, None)


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({"properties": {"a": {"type": "string"}}, "minProperties": 1}, "minProperties"),
        ({"properties": {"a": {"type": "string", "pattern": "(?=a)"}}}, "pattern"),
        ({"properties": {"a": {"type": "string", "format": "unheard"}}}, "unheard"),
        ({"properties": {"a>": {"type": "string"}}}, "a>"),
        ({"properties": {"a": False}, "required": ["a"]}, "contradict"),
        ({"required": ["a"]}, "'a'"),
        ({"properties": {"a": {"enum": ["x</parameter>"]}}}, "</parameter>"),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/L0"}},
                "$defs": {
                    "L8": {"type": "string", "minLength": 1},
                    **{f"L{n}": {"anyOf": [{"$ref": f"#/$defs/L{n + 1}"}] * 10} for n in range(8)},
                },
            },
            "many parts",
        ),
    ],
)  # fmt: skip
def test_what_the_functions_form_cannot_enforce_is_refused(schema, names):
    tools = [TOOLS[0], {"type": "function", "function": {"name": "f", "parameters": schema}}]

    with pytest.raises(InvalidRequest) as caught:
        FunctionsForm().grammar(
            tools, special=MARKERS, enforce=lambda _: True, many=False, only="f"
        )

    assert caught.value.param == "tools[1].function.parameters"
    assert names in caught.value.message
    # A tool that is not enforced, or not to be called, may say what it likes.
    FunctionsForm().grammar(tools, special=MARKERS, enforce=lambda _: False, many=False)
    FunctionsForm().grammar(
        tools, special=MARKERS, enforce=lambda _: True, many=False, only="nothing"
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_two_hundred_tools_fit_one_grammar(form):
    properties = TOOLS[1]["function"]["parameters"]["properties"]
    tools = [tool(f"tool_{i}", properties, required=["short"], **CLOSED) for i in range(200)]
    lark = form.grammar(tools, special=MARKERS, enforce=lambda _: True, many=True)

    text = walk(FULL, lark, 1)

    validate(parse(ReplyShape(form=form, tools=tools), [text]), tools, form)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_schemas_that_are_too_many_are_not_all_read(form):
    properties = {f"p{i}": {"type": "string", "maxLength": i + 1} for i in range(300)}
    names = [f"tool_{i}" for i in range(512)]
    tools = [tool(name, properties) for name in names]
    read = []

    class Watched(dict):
        def get(self, key, default=None):
            read.append(self["name"])
            return super().get(key, default)

    for each in tools:
        each["function"] = Watched(each["function"])
    with pytest.raises(InvalidRequest, match="fewer tools") as caught:
        form.grammar(tools, special=MARKERS, enforce=lambda _: True, many=False)

    assert caught.value.param == "tools"
    assert read == names[: len(read)]
    assert len(read) < 40
    # Where nothing is enforced, any number of them will do.
    lark = form.grammar(tools, special=MARKERS, enforce=lambda _: False, many=False)
    [(name, _)] = calls(parse(ReplyShape(form=form, tools=tools), [walk(FULL, lark, 1)]))
    assert name in names


def test_special_tokens_are_no_text():
    """A vocabulary's token for a tag closes a call even where the same letters are part of a value."""
    lark = HermesForm().grammar([tool("f")], special=MARKERS, enforce=lambda _: False, many=False)
    matcher = begin(FULL, lark)
    inside = FULL.encode('<tool_call>{"name": "f", "arguments": {"a": "')

    assert matcher.consume_tokens(inside)
    assert matcher.validate_tokens([MARKERS["</tool_call>"]]) == 0
    assert matcher.validate_tokens([CONTROL["<|im_end|>"]]) == 0
    assert matcher.validate_tokens([*b"</tool_call>"]) == 12
