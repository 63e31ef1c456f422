"""How large a schema may be, before anything walks through it."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

from server.chat.json_schema.refusal import Refused

KINDS = ("null", "boolean", "number", "string", "array", "object")
"""The types of JSON values; integers are numbers."""
MAX_BYTES = 256 * 1024
"""Of the schema as JSON."""
MAX_DEPTH = 100
"""Levels of objects and arrays in each other: what walks through them does so recursively."""
MAX_VALUES = 50_000
"""Objects, arrays and scalars."""
MAX_COUNT = 10_000
"""`minItems`, `maxItems`, `minProperties`, `maxProperties`: each item is a rule of the grammar."""
MAX_OPTIONAL = 400
"""Properties of an object that are not required: at each place the grammar may be at any of those left."""
MAX_COUNTED = 40
"""Such properties beside `minProperties` or `maxProperties`."""
MAX_ALTERNATIVES = 150
"""Of a `oneOf`: each is compared with each."""
MAX_NEGATED = 32
"""Of a `oneOf` that is negated: each pair of them is written."""
MAX_LENGTH = 1_000_000
"""`minLength`, `maxLength`, and the repetitions in a `pattern`."""
MAX_NUMBER = 2**53
"""Beyond it numbers are not exact in the grammar."""
_DIGITS = 15
"""Of a fraction: so many, at a scale of 10^22 at most, the compiler reads exactly."""
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")


def kind_of(value: Any) -> str:
    """Return the type of a JSON value; integers are numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def measure(schema: Any) -> None:
    """Raise `Refused` if the schema is larger than any walk through it should meet."""
    level: list[Any] = [schema]
    values = depth = 0
    while level:
        values += len(level)
        depth += 1
        if depth > MAX_DEPTH:
            raise Refused(f"it is nested more than {MAX_DEPTH} levels deep")
        if values > MAX_VALUES:
            raise Refused(f"it has more than {MAX_VALUES:,} values")
        level = [inner for value in level for inner in _inside(value)]
    size = len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise Refused(f"it has {size:,} bytes, {MAX_BYTES:,} at most")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused("it holds a number that is not finite")
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise Refused("it holds half of a surrogate pair")
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def count(value: Any, most: int, keyword: str) -> int:
    """Return a non-negative whole number. Raises `Refused` if it is none, or beyond `most`."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise Refused(f"'{keyword}' must be a whole number, not below 0")
    if value > most:
        raise Refused(f"'{keyword}' is {int(value)}, {most} at most")
    return int(value)


def number(value: Any, keyword: str) -> int | float:
    """Return a number that the grammar holds exactly. Raises `Refused`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"'{keyword}' must be a number")
    if abs(value) > MAX_NUMBER:
        raise Refused(f"'{keyword}' has a number beyond ±2^53")
    if float(value).is_integer():
        return int(value)
    told = Decimal(str(value)).as_tuple()
    if len(told.digits) > _DIGITS or abs(int(told.exponent)) > 22:
        raise Refused(
            f"'{keyword}' has a fraction of more than {_DIGITS} digits, or too close to 0"
        )
    return value


def bound(keyword: str, value: float) -> dict[str, int | float]:
    """Write a bound of numbers as the grammar holds it.

    From 0 on the compiler admits n itself under `exclusiveMinimum` n where the maximum is below n + 1,
    and the other way round below 0: the next number of 15 digits is the bound there.
    """
    whole = float(value).is_integer()
    digits = len(str(abs(int(value)))) if value else 0
    step = Decimal(10) ** -max(0, _DIGITS - digits)
    if keyword == "exclusiveMinimum" and value >= 0 and whole:
        return {"minimum": float(Decimal(value) + step)}
    if keyword == "exclusiveMaximum" and value <= 0 and whole:
        return {"maximum": float(Decimal(value) - step)}
    return {keyword: value}


def literal(value: Any, keyword: str) -> Any:
    """Return a value as an answer can hold it. Raises `Refused`."""
    if isinstance(value, dict):
        return {name: literal(inner, keyword) for name, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner, keyword) for inner in value]
    if isinstance(value, str) and _CONTROL.search(value):
        raise Refused(f"'{keyword}' has a control character, which answers do not hold")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, keyword)
    return value
