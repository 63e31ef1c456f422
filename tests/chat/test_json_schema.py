"""Schemas from clients: what becomes of them before they are compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.chat.json_schema import check_schema
from server.core.errors import InvalidRequest
from tests.schemas import PARAM, admits


def written(schema: Any) -> dict[str, Any]:
    made = json.loads(check_schema(schema, PARAM))
    assert isinstance(made, dict)
    del made["x-guidance"], made["$defs"]
    return made


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def many(properties: int) -> dict[str, Any]:
    return {"properties": {f"p{n}": True for n in range(properties)}}


def chain(links: int) -> dict[str, Any]:
    """The compiler follows each link with two more levels of its own recursion."""
    schemas = {f"a{n}": {"items": {"$ref": f"#/$defs/a{n + 1}"}} for n in range(links)}
    return schemas["a0"] | {"$defs": schemas | {f"a{links}": True}}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], "a schema must be an object or a boolean (at #)"),
        (False, "no finite value can match it"),
        ({"properties": {"a": 1}}, "must be an object or a boolean (at #/properties/a)"),
        ({"properties": {"a/b": {"type": "text"}}}, "'type' 'text' is none of"),
        ({"properties": {"a/b": {"type": "text"}}}, "(at #/properties/a~1b)"),
        ({"type": []}, "'type' must be a name or a list of names"),
        ({"type": [{}]}, "'type' {} is none of"),
        ({"enum": []}, "'enum' must be a list with something in it"),
        ({"anyOf": []}, "'anyOf' must be a list with a schema in it"),
        ({"properties": []}, "'properties' must be an object"),
        ({"required": "a"}, "'required' must be a list of names"),
        ({"minLength": -1}, "'minLength' must be a whole number, not below 0"),
        ({"minLength": True}, "'minLength' must be a whole number, not below 0"),
        ({"minLength": 1.5}, "'minLength' must be a whole number, not below 0"),
        ({"maxItems": 10**9}, "'maxItems' is 1000000000, 10000 at most"),
        ({"minLength": 10**9}, "'minLength' is 1000000000, 1000000 at most"),
        ({"minimum": "1"}, "'minimum' must be a number"),
        ({"minimum": 1e300}, "'minimum' has a number beyond ±2^53"),
        ({"const": 2**53 + 1}, "'const' has a number beyond ±2^53"),
        ({"const": {"a": ["\x01"]}}, "'const' has a control character"),
        ({"maximum": float("inf")}, "a number that is not finite"),
        ({"exclusiveMinimum": True}, "not a boolean as in draft 4"),
        ({"multipleOf": 0}, "'multipleOf' must be above 0"),
        (
            {"multipleOf": 1e-300},
            "'multipleOf' has a fraction of more than 15 digits, or too close",
        ),
        ({"const": 0.1 + 0.2}, "'const' has a fraction of more than 15 digits"),
        ({"multipleOf": 0.07}, "'multipleOf' 0.07 has too many digits"),
        ({"uniqueItems": True}, "'uniqueItems' is not supported"),
        ({"minProperties": 2}, "'minProperties' more than one above the required ones"),
        ({"format": "iri"}, "'format' 'iri' is none of date, date-time"),
        ({"title": "\ud800"}, "half of a surrogate pair"),
        ({"$schema": "http://example.com/mine"}, "'$schema' 'http://example.com/mine'"),
        ({"$ref": "http://example.com/a.json"}, "'$ref' leads out of the schema or to nothing"),
        ({"$ref": "#/$defs/none"}, "'$ref' leads out of the schema or to nothing"),
        ({"$ref": "#nowhere"}, "'$ref' leads out of the schema or to nothing"),
        ({"$ref": 3}, "'$ref' must be a string"),
        (nested(10_000), "nested more than 100 levels deep"),
        ({"enum": [str(n) for n in range(100_000)]}, "more than 50,000 values"),
        (many(401), "'properties' has 401 that are not required, 400 at most"),
        (many(41) | {"minProperties": 1}, "'properties' has 41 that are not required, 40 at most"),
        (
            {"properties": {str(n): {"maxItems": 9_000} for n in range(3)}},
            "its 'minItems' and 'maxItems' are 27,000 together, 20,000 at most",
        ),
        (
            {"allOf": [{"multipleOf": 997}, {"multipleOf": 0.5}, {"multipleOf": 2.5}]},
            "its 'multipleOf' have a common multiple beyond 10,000 units",
        ),
        (chain(301), "its '$ref' lead through 602 levels of schemas, 600 at most"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/$defs/a", "$id": "b"},
            "'$id' beside '$ref' means nothing in old drafts",
        ),
        ({"description": "x" * 300_000}, "300,019 bytes, 262,144 at most"),
    ],
)
def test_what_is_wrong_or_cannot_be_enforced_is_refused_by_name(schema: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_schema(schema, PARAM)
    assert reason in caught.value.message
    assert caught.value.param == PARAM


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "object", "allOf": [{"properties": {"a": {"$ref": "#"}}, "required": ["a"]}]},
    ],
)
def test_endless_recursion_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest, match="endless recursion"):
        check_schema(schema, PARAM)


def test_recursion_that_can_end_is_admitted() -> None:
    tree = {
        "type": "object",
        "properties": {"sub": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["sub"],
        "additionalProperties": False,
    }
    assert admits(tree, '{"sub": [{"sub": []}]}', '{"sub": [{}]}') == [True, False]


def test_references_reach_pointers_anchors_and_identifiers() -> None:
    schema = {
        "$id": "https://example.com/root",
        "$defs": {
            "a/b": {"type": "integer"},
            "named": {"$anchor": "here", "type": "boolean"},
            "own": {"$id": "own", "$defs": {"x": {"type": "null"}}},
        },
        "prefixItems": [
            {"$ref": "#/$defs/a~1b"},
            {"$ref": "#here"},
            {"$ref": "own#/$defs/x"},
            {"$dynamicRef": "https://example.com/root#/$defs/a%7E1b"},
        ],
        "items": False,
        "type": "array",
    }
    with pytest.raises(InvalidRequest, match="beside an"):
        check_schema(schema, PARAM)
    del schema["prefixItems"][3]  # type: ignore[attr-defined]
    assert admits(schema, "[1, true, null]", '["1"]', "[1, 1]") == [True, False, False]


def test_unknown_keywords_and_annotations_are_left_out() -> None:
    schema = {"type": "string", "title": "T", "x-guidance": {"lenient": True}, "examples": [1]}
    assert written(schema) == {"type": "string"}


def test_a_bare_schema_admits_any_value() -> None:
    assert admits(True, '{"a": [1, null]}', "1.5e3", '"x"') == [True, True, True]
    assert admits({"minLength": 2}, "1", '"a"', '"ab"') == [True, False, True]


def test_a_known_name_cannot_be_spelt_in_another_way() -> None:
    schema = {"type": "object", "properties": {"foo": {"type": "integer"}}}
    assert admits(schema, '{"foo": 1}', '{"bar": "x"}') == [True, True]
    assert admits(schema, '{"foo": "x"}', '{"\\u0066oo": "x"}') == [False, False]


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("b", "abc", "acd"),
        ("^a|b$", "ax xb", "xa bx"),
        ("^[a[b]]$", "a] b]", "a b"),
        ("^[^\\w-]\\d{2,3}?$", "+12 é123", "a12 -12 +1"),
        ("^\\u00e9\\x41\\u{1F600}\\ud83d\\ude00\\/$", "éA😀😀/", "éA😀"),
        ("^(?<year>\\d{4})(?:-|)x$", "1999-x 1999x", "1999"),
        ("^[\\]\\-a-c]+$", "]-abc", "d \\"),
        ("^x{,3}$", "x{,3}", "x xx"),
        ("^.$", "a é", "ab"),
    ],
)
def test_patterns_mean_what_they_mean_in_ecmascript(
    pattern: str, matches: str, others: str
) -> None:
    schema = {"type": "string", "pattern": pattern}
    assert all(admits(schema, *(json.dumps(t, ensure_ascii=False) for t in matches.split())))
    assert not any(admits(schema, *(json.dumps(t, ensure_ascii=False) for t in others.split())))


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?=a)", "(?!a)", "(?<=a)b", "(?<!a)b", "(?i)a", "(a)\\1", "\\k<a>", "\\bx", "\\p{L}"),
        *("a**", "a{2}{3}", "(", ")", "[", "[]", "[b-a]", "[\\d-z]", "*a", "{2}", "a{3,2}", "\\"),
        *(
            "\\Z",
            "\\a",
            "\\u12",
            "\\ud800",
            "\\x0",
            "\\u{110000}",
            "a{9999999}",
            "(" * 60,
            "^\\cC$",
        ),
    ],
)
def test_patterns_that_no_grammar_can_follow_are_refused(pattern: str) -> None:
    for schema in ({"pattern": pattern}, {"patternProperties": {pattern: True}}):
        with pytest.raises(InvalidRequest, match=f"'{next(iter(schema))}' .* near character"):
            check_schema(schema, PARAM)
