"""Words for validation errors: what was wrong, and what is allowed."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic_core import ErrorDetails

_TYPES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
    "dict_type": "names with a section each",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def describe(error: ErrorDetails) -> str:
    """One line for a pydantic error, without the key and the place."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind in _TYPES:
        quote = "; put it in quotes" if kind == "string_type" and _is_plain(value) else ""
        return f"must be {_TYPES[kind]}, not {shown(value)}{quote}"
    if kind == "literal_error":
        return _choice(str(context["expected"]), value)
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        rule = f"must be {words} {shown(context[bound])}"
    elif kind == "string_too_short":
        rule = "must not be empty"
    else:
        rule = str(context.get("error", error["msg"]))
    return f"{rule}; it is {shown(value)}"


def shown(value: Any) -> str:
    """`value` as its author would know it, shortened, with its type where text could mislead."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value).removesuffix(".0")
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value)
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}…"'


def _choice(expected: str, value: object) -> str:
    options = [option.strip("' ") for option in expected.replace(" or ", ", ").split(", ")]
    near = difflib.get_close_matches(str(value).lower(), options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"must be one of {', '.join(options)}, not {shown(value)}{hint}"


def _is_plain(value: object) -> bool:
    return value is not None and not isinstance(value, dict | list)
