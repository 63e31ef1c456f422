"""What a schema does not admit, as a schema: for `not`, `oneOf`, `if` and what depends on names.

Each keyword gives alternatives, one of which must hold so that the keyword does not. They are exact
but for one thing: where only integers are excluded, all numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from server.chat.json_schema.bounds import KINDS, MAX_LENGTH, MAX_NEGATED, bound, count, number
from server.chat.json_schema.others import other_values
from server.chat.json_schema.place import Place

Negation = Callable[[Place, str], Iterable[Any]]


def alternatives(here: Place) -> list[Any]:
    """Write the ways not to match the schema of a place. Raises `Refused`."""
    found: list[Any] = []
    for keyword in here.schema:
        if keyword in NEGATIONS:
            found += NEGATIONS[keyword](here, keyword)
    return [schema for schema in found if schema is not False]


def _type(here: Place, keyword: str) -> Iterator[Any]:
    types = here.schema[keyword]
    excluded = {types} if isinstance(types, str) else set(types)
    if "integer" in excluded:
        excluded.add("number")
    kinds = [kind for kind in KINDS if kind not in excluded]
    yield {"type": kinds} if kinds else False


def _values(here: Place, keyword: str) -> Iterator[Any]:
    values = here.schema[keyword] if keyword == "enum" else [here.schema[keyword]]
    yield from other_values(values, keyword)


def _bound(here: Place, keyword: str) -> Iterator[Any]:
    other = {
        "minimum": "exclusiveMaximum",
        "maximum": "exclusiveMinimum",
        "exclusiveMinimum": "maximum",
        "exclusiveMaximum": "minimum",
    }[keyword]
    yield {"type": "number", **bound(other, number(here.schema[keyword], keyword))}


def _size(here: Place, keyword: str) -> Iterator[Any]:
    kind = {"L": "string", "I": "array", "P": "object"}[keyword[3]]
    value = count(here.schema[keyword], MAX_LENGTH, keyword)
    if keyword.startswith("min"):
        yield {"type": kind, f"max{keyword[3:]}": value - 1} if value else False
    elif keyword == "maxProperties" and value:
        raise here.refused(keyword, "above 0 cannot be negated")
    else:
        yield {"type": kind, f"min{keyword[3:]}": value + 1}


def _required(here: Place, keyword: str) -> Iterator[Any]:
    for name in here.schema[keyword]:
        yield without(name)


def _properties(here: Place, keyword: str) -> Iterator[Any]:
    for name in here.named(keyword):
        other = here.negated(keyword, name)
        yield other and {"type": "object", "properties": {name: other}, "required": [name]}


def _prefix(here: Place, keyword: str) -> Iterator[Any]:
    for i, keys in enumerate(here.listed(keyword)):
        other = here.negated(*keys)
        yield other and {"type": "array", "prefixItems": [True] * i + [other], "minItems": i + 1}


def _open(here: Place, keyword: str) -> Iterator[Any]:
    """What says nothing as long as it is `true`."""
    if here.schema[keyword] is not True:
        raise here.refused(keyword, "cannot be negated")
    yield False


def _all(here: Place, keyword: str) -> Iterator[Any]:
    for keys in here.listed(keyword):
        yield here.negated(*keys)


def _any(here: Place, keyword: str) -> Iterator[Any]:
    yield {"allOf": [here.negated(*keys) for keys in here.listed(keyword)]}


def _not(here: Place, keyword: str) -> Iterator[Any]:
    yield here.inner(keyword)


def _one(here: Place, keyword: str) -> Iterator[Any]:
    every = here.listed(keyword)
    if len(every) > MAX_NEGATED:
        raise here.refused(keyword, "has too many alternatives to be negated")
    yield {"allOf": [here.reference(*keys, negated=True) for keys in every]}
    for i, first in enumerate(every):
        for second in every[:i]:
            yield {"allOf": [here.reference(*first), here.reference(*second)]}


def _if(here: Place, keyword: str) -> Iterator[Any]:
    for branch, other in (("then", False), ("else", True)):
        if branch in here.schema:
            condition = here.reference(keyword, negated=other)
            yield {"allOf": [condition, here.negated(branch)]}


def _reference(here: Place, keyword: str) -> Iterator[Any]:
    target = here.walk.document.resolve(here.schema[keyword], here.at, keyword)
    yield here.walk.reference(target, negated=True)


def _dependents(here: Place, keyword: str) -> Iterator[Any]:
    for name, needed in here.named(keyword).items():
        if isinstance(needed, list):
            for other in needed:
                if not isinstance(other, str):
                    raise here.refused(keyword, "must hold lists of names")
                yield {"allOf": [having(name), without(other)]}
        else:
            yield {"allOf": [having(name), here.negated(keyword, name)]}


def _contains(here: Place, keyword: str) -> Iterator[Any]:
    if "minContains" in here.schema or "maxContains" in here.schema:
        raise here.refused(keyword, "with counts cannot be negated")
    yield {"type": "array", "items": here.negated(keyword)}


def _exact(here: Place, keyword: str) -> Iterator[Any]:
    if here.schema[keyword] is not False:
        raise here.refused(keyword, "cannot be negated")
    yield False


def _never(here: Place, keyword: str) -> Iterable[Any]:
    raise here.refused(keyword, "cannot be negated")


def having(name: str) -> dict[str, Any]:
    """Write what admits the objects with that property."""
    return {"type": "object", "required": [name]}


def without(name: str) -> dict[str, Any]:
    """Write what admits the objects without that property."""
    return {"type": "object", "properties": {name: False}}


_BY_NEGATION: dict[Negation, str] = {
    _type: "type",
    _values: "const enum",
    _bound: "minimum maximum exclusiveMinimum exclusiveMaximum",
    _size: "minLength maxLength minItems maxItems minProperties maxProperties",
    _required: "required",
    _properties: "properties",
    _prefix: "prefixItems",
    _open: "additionalProperties items unevaluatedItems unevaluatedProperties propertyNames",
    _all: "allOf",
    _any: "anyOf",
    _not: "not",
    _one: "oneOf",
    _if: "if",
    _reference: "$ref",
    _dependents: "dependentRequired dependentSchemas dependencies",
    _contains: "contains",
    _exact: "uniqueItems",
    _never: "$dynamicRef $recursiveRef format multipleOf pattern patternProperties",
}
NEGATIONS: dict[str, Negation] = {
    keyword: negation for negation, keywords in _BY_NEGATION.items() for keyword in keywords.split()
}
