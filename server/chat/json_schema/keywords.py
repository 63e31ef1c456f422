"""What each keyword becomes: handlers that write a keyword of one place, or refuse it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from server.chat.json_schema import applicators as combined
from server.chat.json_schema.bounds import (
    MAX_COUNT,
    MAX_COUNTED,
    MAX_LENGTH,
    MAX_OPTIONAL,
    bound,
    count,
    literal,
    number,
)
from server.chat.json_schema.formats import FORMATS
from server.chat.json_schema.patterns import translated
from server.chat.json_schema.place import Place

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_DIALECTS = {
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    *(f"http://json-schema.org/draft-0{n}/schema" for n in (4, 6, 7)),
}

Handler = Callable[[Place, str], None]


def _dialect(here: Place, keyword: str) -> None:
    named = here.schema[keyword]
    if not isinstance(named, str) or named.rstrip("#") not in _DIALECTS:
        raise here.refused(keyword, f"{named!r} is not a known dialect")


def _unsupported(here: Place, keyword: str) -> None:
    raise here.refused(keyword)


def _type(here: Place, keyword: str) -> None:
    types = here.schema[keyword]
    named = [types] if isinstance(types, str) else types
    if not isinstance(named, list) or not named:
        raise here.refused(keyword, "must be a name or a list of names")
    for name in named:
        if name not in _TYPES:
            raise here.refused(keyword, f"{name!r} is none of {', '.join(_TYPES)}")
    here.written[keyword] = types


def _enum(here: Place, keyword: str) -> None:
    values = here.schema[keyword]
    if not isinstance(values, list) or not values:
        raise here.refused(keyword, "must be a list with something in it")
    here.written[keyword] = [literal(value, keyword) for value in values]


def _const(here: Place, keyword: str) -> None:
    here.written[keyword] = literal(here.schema[keyword], keyword)


def _bound(here: Place, keyword: str) -> None:
    value = here.schema[keyword]
    if isinstance(value, bool) and keyword.startswith("exclusive"):
        raise here.refused(keyword, "must be a number, not a boolean as in draft 4")
    for name, held in bound(keyword, number(value, keyword)).items():
        narrower = max if name in ("minimum", "exclusiveMinimum") else min
        here.written[name] = narrower(held, here.written.get(name, held))


def _multiple(here: Place, keyword: str) -> None:
    value = number(here.schema[keyword], keyword)
    if value <= 0:
        raise here.refused(keyword, "must be above 0")
    # The compiler scales it in floating point until it is whole: the result must be exact.
    scaled, digits = float(value), 0
    while not scaled.is_integer():
        scaled, digits = scaled * 10, digits + 1
    if scaled >= 2**32 or Fraction(str(value)) != Fraction(int(scaled), 10**digits):
        raise here.refused(keyword, f"{value} has too many digits")
    here.written[keyword] = value


def _length(here: Place, keyword: str) -> None:
    here.written[keyword] = count(here.schema[keyword], MAX_LENGTH, keyword)


def _count(here: Place, keyword: str) -> None:
    here.written[keyword] = count(here.schema[keyword], MAX_COUNT, keyword)


def _least_properties(here: Place, keyword: str) -> None:
    least = count(here.schema[keyword], MAX_COUNT, keyword)
    required = here.schema.get("required")
    certain = len(required) if isinstance(required, list) else 0
    # The same name twice would count as two properties.
    if least > certain + 1 and here.schema.get("additionalProperties") is not False:
        raise here.refused(keyword, "more than one above the required ones is not supported")
    here.written[keyword] = least


def _pattern(here: Place, keyword: str) -> None:
    if not isinstance(here.schema[keyword], str):
        raise here.refused(keyword, "must be a string")
    here.written[keyword] = translated(here.schema[keyword])


def _format(here: Place, keyword: str) -> None:
    name = here.schema[keyword]
    if not isinstance(name, str) or name not in FORMATS:
        raise here.refused(keyword, f"{name!r} is none of {', '.join(sorted(FORMATS))}")
    pattern, longest = FORMATS[name]
    more = {} if longest is None else {"maxLength": longest}
    here.also({"pattern": translated(f"^(?:{pattern})$"), **more})


def _one(here: Place, keyword: str) -> None:
    here.written[keyword] = here.inner(keyword)


def _some(here: Place, keyword: str) -> None:
    here.written.setdefault(keyword, []).extend(here.inner(*keys) for keys in here.listed(keyword))


def _properties(here: Place, keyword: str) -> None:
    listed = here.schema.get("required")
    required = (
        {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    )
    optional = sum(name not in required for name in here.named(keyword))
    counted = "minProperties" in here.schema or "maxProperties" in here.schema
    most = MAX_COUNTED if counted else MAX_OPTIONAL
    if optional > most:
        beside = " beside 'minProperties' and 'maxProperties'" if counted else ""
        raise here.refused(keyword, f"has {optional} that are not required, {most} at most{beside}")
    here.written[keyword] = {name: here.inner(keyword, name) for name in here.named(keyword)}


def _patterns(here: Place, keyword: str) -> None:
    here.written[keyword] = {
        translated(pattern, keyword): here.inner(keyword, pattern)
        for pattern in here.named(keyword)
    }


def _items(here: Place, keyword: str) -> None:
    listed = here.schema[keyword]
    if not isinstance(listed, list):
        _one(here, keyword)
        return
    if listed:  # as drafts before 2020-12 wrote `prefixItems` and `items`
        here.written["prefixItems"] = [here.inner(*keys) for keys in here.listed(keyword)]
    if "additionalItems" in here.schema:
        here.written[keyword] = here.inner("additionalItems")


def _required(here: Place, keyword: str) -> None:
    value = here.schema[keyword]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise here.refused(keyword, "must be a list of names")
    here.written[keyword] = list(dict.fromkeys(value))


def _reference(here: Place, keyword: str) -> None:
    if keyword == "$dynamicRef" and not here.walk.document.single:
        raise here.refused(keyword, "beside an '$id' below the root is not supported")
    if here.walk.document.old and "$id" in here.schema:
        raise here.refused("$id", "beside '$ref' means nothing in old drafts")
    target = here.walk.document.resolve(here.schema[keyword], here.at, keyword)
    reference = here.walk.reference(target)
    if "$ref" in here.written:
        here.also(reference)
    else:
        here.written.update(reference)


def _unique(here: Place, keyword: str) -> None:
    if here.schema[keyword] is not False and here.schema.get("maxItems") not in (0, 1):
        raise here.refused(keyword)


_BY_HANDLER: dict[Handler, str] = {
    _dialect: "$schema",
    _type: "type",
    _enum: "enum",
    _const: "const",
    _bound: "minimum maximum exclusiveMinimum exclusiveMaximum",
    _multiple: "multipleOf",
    _length: "minLength maxLength",
    _count: "minItems maxItems maxProperties",
    _least_properties: "minProperties",
    _pattern: "pattern",
    _format: "format",
    _one: "additionalProperties",
    _items: "items",
    _some: "allOf anyOf prefixItems",
    combined.one_of: "oneOf",
    combined.not_: "not",
    combined.if_: "if",
    combined.dependents: "dependentRequired dependentSchemas dependencies",
    combined.contains: "contains",
    combined.property_names: "propertyNames",
    combined.unevaluated_properties: "unevaluatedProperties",
    combined.unevaluated_items: "unevaluatedItems",
    _properties: "properties",
    _patterns: "patternProperties",
    _required: "required",
    _reference: "$ref $dynamicRef",
    _unique: "uniqueItems",
    _unsupported: "$recursiveRef",
}
HANDLERS: dict[str, Handler] = {
    keyword: handler for handler, keywords in _BY_HANDLER.items() for keyword in keywords.split()
}
"""Keywords that are not here say nothing about an answer and are left out."""
PLAIN = {"type", "enum", "const", "required", *_BY_HANDLER[_bound].split()}
"""Those without schemas in them whose values a negation takes as they are."""
