"""Keywords that combine schemas: `not`, `oneOf`, `if`, what depends on names, what is left over."""

from __future__ import annotations

from typing import Any

from server.chat.json_schema.bounds import (
    KINDS,
    MAX_ALTERNATIVES,
    MAX_COUNT,
    MAX_LENGTH,
    MAX_OPTIONAL,
    count,
)
from server.chat.json_schema.leftover import evaluated_items, evaluated_properties
from server.chat.json_schema.negation import having
from server.chat.json_schema.patterns import anything, translated
from server.chat.json_schema.place import Place
from server.chat.json_schema.refusal import Refused

_MAX_PAIRS = 500
_MAX_POSITIONS = 16


def not_(here: Place, keyword: str) -> None:
    """`not`."""
    here.also(here.negated(keyword))


def one_of(here: Place, keyword: str) -> None:
    """`oneOf`: one alternative, and none of those that could hold beside it."""
    every = here.listed(keyword)
    if len(every) > MAX_ALTERNATIVES:
        raise here.refused(keyword, "has too many alternatives")
    beside = [
        [
            other
            for other in every
            if other != keys
            and not here.walk.disjoint.proven((*here.at, *keys), (*here.at, *other))
        ]
        for keys in every
    ]
    if sum(map(len, beside)) > _MAX_PAIRS:
        raise here.refused(keyword, "has too many alternatives that could hold together")
    here.also(
        {
            "anyOf": [
                {
                    "allOf": [
                        here.reference(*keys),
                        *(here.reference(*other, negated=True) for other in others),
                    ]
                }
                if others
                else here.inner(*keys)
                for keys, others in zip(every, beside, strict=True)
            ]
        }
    )


def if_(here: Place, keyword: str) -> None:
    """`if` with `then` and `else`; alone it says nothing."""
    if "then" in here.schema or "else" in here.schema:
        branches = [
            {
                "allOf": [
                    here.reference(keyword, negated=negated),
                    here.inner(branch) if branch in here.schema else True,
                ]
            }
            for branch, negated in (("then", False), ("else", True))
        ]
        here.also({"anyOf": branches})


def dependents(here: Place, keyword: str) -> None:
    """`dependentRequired`, `dependentSchemas`, and `dependencies` for either."""
    for name, needed in here.named(keyword).items():
        if isinstance(needed, list):
            if not all(isinstance(other, str) for other in needed):
                raise here.refused(keyword, "must hold lists of names")
            present: Any = {"type": "object", "required": list(dict.fromkeys([name, *needed]))}
        else:
            present = {"allOf": [having(name), here.inner(keyword, name)]}
        here.also({"anyOf": [{"properties": {name: False}}, present]})


def contains(here: Place, keyword: str) -> None:
    """`contains`, where no item has to be counted."""
    least = count(here.schema.get("minContains", 1), MAX_COUNT, "minContains")
    limited = "maxContains" in here.schema
    most = count(here.schema.get("maxContains", 0), MAX_COUNT, "maxContains")
    longest = here.schema.get("maxItems")
    if here.schema[keyword] is True:
        here.also({"minItems": least} | ({"maxItems": most} if limited else {}))
    elif least == 0 and not limited:
        here.inner(keyword)
    elif least == 0 and most == 0:
        here.also({"items": here.negated(keyword)})
    elif here.schema[keyword] is False:
        here.also({"type": [kind for kind in KINDS if kind != "array"]})
    elif least == 1 and not limited and isinstance(longest, int) and longest <= _MAX_POSITIONS:
        matched = here.reference(keyword)
        here.also(
            {
                "anyOf": [
                    {"prefixItems": [True] * i + [matched], "minItems": i + 1}
                    for i in range(longest)
                ]
            }
        )
    else:
        raise here.refused(
            keyword, f"is supported beside a 'maxItems' of {_MAX_POSITIONS} at most, without counts"
        )


def property_names(here: Place, keyword: str) -> None:
    """`propertyNames`, where one keyword says which."""
    names = here.schema[keyword]
    if names is True:
        return
    if names is False:
        here.also({"maxProperties": 0})
        return
    if not isinstance(names, dict):
        raise here.refused(keyword, "must be an object or a boolean")
    told = {key: names[key] for key in names if key != "type" or names[key] != "string"}
    if "patternProperties" in here.schema:
        raise here.refused(keyword, "beside 'patternProperties' is not supported")
    if told.keys() <= {"const"} or told.keys() <= {"enum"}:
        words = [told["const"]] if "const" in told else told.get("enum", [])
        known = {word: True for word in words if isinstance(word, str)}
        here.also({"properties": known, "additionalProperties": False} if told else True)
    else:
        here.also({"patternProperties": {_name(told, here): True}, "additionalProperties": False})


def _name(told: dict[str, Any], here: Place) -> str:
    if told.keys() == {"pattern"} and isinstance(told["pattern"], str):
        return translated(told["pattern"], "propertyNames")
    if told.keys() <= {"minLength", "maxLength"}:
        least = count(told.get("minLength", 0), MAX_LENGTH, "minLength")
        most = told.get("maxLength")
        return anything(least, None if most is None else count(most, MAX_LENGTH, "maxLength"))
    raise here.refused(
        "propertyNames", "is supported with one of 'const', 'enum', 'pattern' and lengths alone"
    )


def unevaluated_properties(here: Place, keyword: str) -> None:
    """`unevaluatedProperties`, where no branch decides what is evaluated."""
    if here.schema[keyword] is True:
        return
    known = evaluated_properties(here.walk.document, here.at)
    if known is None:
        raise _branching(here, keyword)
    if not known.everything:
        # Each place that refers to the names would have them all.
        if len(known.names) > MAX_OPTIONAL:
            what = f"beside more than {MAX_OPTIONAL} properties is not supported"
            raise here.refused(keyword, what)
        here.also(
            {
                "properties": dict.fromkeys(known.names, True),
                "patternProperties": {translated(p): True for p in known.patterns},
                "additionalProperties": here.inner(keyword),
            }
        )


def unevaluated_items(here: Place, keyword: str) -> None:
    """`unevaluatedItems`, where no branch decides what is evaluated."""
    if here.schema[keyword] is True:
        return
    known = evaluated_items(here.walk.document, here.at)
    if known is None:
        raise _branching(here, keyword)
    if known.first is not None:
        first = {"prefixItems": [True] * known.first} if known.first else {}
        here.also(first | {"items": here.inner(keyword)})


def _branching(here: Place, keyword: str) -> Refused:
    return here.refused(keyword, "beside keywords that choose between schemas is not supported")
