"""Keywords that the compiler of grammars does not know, or not well: written anew, they bind."""

from __future__ import annotations

from typing import Any

import pytest

from server.chat.json_schema import check_schema
from server.core.errors import InvalidRequest
from tests.schemas import PARAM, admits


def object_(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


TREE = {"anyOf": [{"type": "null"}, object_(sub={"$ref": "#"})]}


@pytest.mark.parametrize(
    ("schema", "matching", "others"),
    [
        ({"not": {"type": ["object", "array", "number"]}}, ["null", '"a"'], ["1", "[]"]),
        (
            {"type": "string", "not": {"enum": ["ab", "ac", ""]}},
            ['"a"', '"abc"', '"b"'],
            ['"ab"', '"ac"', '""'],
        ),
        (
            {"not": {"enum": [1, 3.5, True, None, [], {}]}},
            ["2", "3.25", "0", "4", "false", "[1]", '{"a": 1}', '"1"'],
            ["1", "3.5", "true", "null", "[]", "{}"],
        ),
        ({"type": "number", "not": {"minimum": 1, "maximum": 3}}, ["0.5", "3.5"], ["1", "2", "3"]),
        ({"type": "number", "not": {"exclusiveMinimum": 1}}, ["1", "0"], ["1.5", "2"]),
        (
            {"type": "string", "not": {"minLength": 2, "maxLength": 3}},
            ['"a"', '"abcd"'],
            ['"ab"', '"abc"'],
        ),
        ({"type": "array", "not": {"minItems": 1}}, ["[]"], ["[1]"]),
        ({"type": "array", "not": {"prefixItems": [{"type": "null"}]}}, ["[1]"], ["[]", "[null]"]),
        ({"type": "array", "not": {"contains": {"type": "null"}}}, ["[]", "[1]"], ["[1, null]"]),
        ({"type": "object", "not": {"required": ["a"]}}, ["{}", '{"b": 1}'], ['{"a": 1}']),
        ({"not": object_(a={"type": "null"})}, ["1", "{}", '{"a": 1}'], ['{"a": null}']),
        ({"not": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, ["1"], ["null", '"a"']),
        ({"not": {"allOf": [{"minimum": 1}, {"maximum": 2}]}}, ["0", "3"], ["1", "2", "null"]),
        ({"not": {"not": {"type": "null"}}}, ["null"], ["1"]),
        (
            {"type": "object", "not": {"dependentRequired": {"a": ["b"]}}},
            ['{"a": 1}'],
            ["{}", '{"a": 1, "b": 1}'],
        ),
        (
            {"type": "number", "not": {"oneOf": [{"minimum": 1}, {"maximum": 2}]}},
            ["1", "2", "1.5"],
            ["0", "3"],
        ),
        (
            {"type": "number", "not": {"if": {"minimum": 3}, "then": {"maximum": 5}}},
            ["6"],
            ["4", "2"],
        ),
        (
            {"type": "number", "exclusiveMinimum": 1, "maximum": 1.5},
            ["1.5", "1.01"],
            ["1", "1.0", "1.51"],
        ),
        (
            {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0},
            ["-0.5", "-0.01"],
            ["0", "-0.0", "-0.51"],
        ),
        (
            {"type": "number", "exclusiveMinimum": 99, "minimum": 5, "not": {"minimum": 101}},
            ["100", "99.5", "100.9"],
            ["99", "6", "101"],
        ),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
        ({"type": "number", "oneOf": [{"minimum": 1}, {"maximum": 2}]}, ["0", "3"], ["1", "2"]),
        (
            {"oneOf": [object_(k={"const": "a"}), object_(k={"const": "b"}, x={"type": "null"})]},
            ['{"k": "a"}', '{"k": "b", "x": null}'],
            ['{"k": "b"}', '{"k": "c"}'],
        ),
        ({"oneOf": [TREE, {"type": "string"}], "$defs": {}}, ["null", '{"sub": "a"}'], ["1"]),
        (
            {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            ['{"a": 1}', '{"b": 1}'],
            ["{}", '{"a": 1, "b": 1}'],
        ),
        (
            {"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "null"}},
            ['"ab"', "null"],
            ['"a"', "1"],
        ),
        ({"if": {"type": "string"}}, ["1", '"a"'], []),
        ({"if": True, "then": {"type": "null"}}, ["null"], ["1"]),
        (
            {"type": "object", "dependentRequired": {"a": ["b"]}},
            ["{}", '{"b": 1}', '{"a": 1, "b": 2}'],
            ['{"a": 1}'],
        ),
        (
            {"type": "object", "dependentSchemas": {"a": {"maxProperties": 1}}},
            ['{"a": 1}', '{"b": 1, "c": 1}'],
            ['{"a": 1, "b": 1}'],
        ),
        (
            {"type": "object", "dependencies": {"a": ["b"], "c": False}},
            ["{}", '{"a": 1, "b": 2}'],
            ['{"a": 1}', '{"c": 1}'],
        ),
        (
            {"type": "array", "maxItems": 3, "contains": {"type": "null"}},
            ["[null]", "[1, 2, null]"],
            ["[]", "[1]"],
        ),
        ({"type": "array", "contains": True, "minContains": 2}, ["[1, 2]"], ["[1]"]),
        (
            {"contains": {"type": "null"}, "minContains": 0, "maxContains": 0},
            ["[1]", "1"],
            ["[null]"],
        ),
        ({"contains": False}, ["1"], ["[]", "[1]"]),
        (
            {"type": "object", "propertyNames": {"enum": ["a", "b"]}},
            ["{}", '{"a": 1}'],
            ['{"c": 1}'],
        ),
        ({"type": "object", "propertyNames": {"pattern": "^x"}}, ['{"xa": 1}'], ['{"a": 1}']),
        (
            {"type": "object", "propertyNames": {"maxLength": 2}, "properties": {"abc": True}},
            ['{"ab": 1}'],
            ['{"abc": 1}'],
        ),
        ({"type": "object", "propertyNames": False}, ["{}"], ['{"a": 1}']),
        (
            {
                "properties": {"a": True},
                "allOf": [{"properties": {"b": True}}],
                "unevaluatedProperties": False,
            },
            ["1", '{"a": 1, "b": 2}'],
            ['{"c": 1}'],
        ),
        (
            {
                "prefixItems": [True],
                "allOf": [{"prefixItems": [True, True]}],
                "unevaluatedItems": {"type": "null"},
            },
            ["1", "[1, 2, null]"],
            ["[1, 2, 3]"],
        ),
        (
            {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
            ["[]", "[null]"],
            ["[1]", "[null, 1]"],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/no"}, "$ref": {"type": "null"}},
                "$defs": {"no": False},
            },
            ["{}", '{"$ref": null}'],
            ['{"a": 1}', '{"$ref": 1}'],
        ),
    ],
)
def test_what_is_written_anew_admits_the_same(
    schema: Any, matching: list[str], others: list[str]
) -> None:
    assert admits(schema, *matching) == [True] * len(matching)
    assert admits(schema, *others) == [False] * len(others)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"pattern": "a"}}, "'pattern' cannot be negated (at #/not)"),
        ({"not": {"items": {"type": "null"}}}, "'items' cannot be negated"),
        ({"not": {"const": [1]}}, "'const' with a value inside an array cannot be negated"),
        ({"not": 1}, "a schema must be an object or a boolean (at #/not)"),
        ({"not": {"type": "text"}}, "'type' 'text' is none of"),
        ({"not": {"minLength": "a"}}, "'minLength' must be a whole number"),
        ({"not": {}}, "no finite value can match it"),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "'pattern' cannot be negated"),
        ({"oneOf": [{"minimum": n} for n in range(50)]}, "'oneOf' has too many alternatives"),
        ({"oneOf": [{}] * 40_000}, "'oneOf' has too many alternatives"),
        ({"not": {"oneOf": [True] * 40_000}}, "'oneOf' has too many alternatives to be negated"),
        (
            {"oneOf": [{"type": "object", "allOf": [{}] * 190}] * 140},
            "'oneOf' has too many alternatives that could hold",
        ),
        (
            {
                "$ref": "#/$defs/a",
                "unevaluatedProperties": False,
                "$defs": {"a": {"properties": {f"p{n}": True for n in range(401)}}},
            },
            "'unevaluatedProperties' beside more than 400",
        ),
        ({"dependentRequired": {"a": [1]}}, "'dependentRequired' must hold lists of names"),
        ({"contains": {"type": "null"}}, "'contains' is supported beside a 'maxItems' of 16"),
        ({"propertyNames": {"format": "date"}}, "'propertyNames' is supported with one of"),
        (
            {"anyOf": [{"properties": {"a": True}}], "unevaluatedProperties": False},
            "'unevaluatedProperties' beside keywords that choose",
        ),
        ({"$recursiveRef": "#"}, "'$recursiveRef' is not supported"),
        ({"not": {"$ref": "#"}}, "endless recursion"),
    ],
)
def test_what_cannot_be_written_anew_is_refused_by_name(schema: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_schema(schema, PARAM)
    assert reason in caught.value.message
