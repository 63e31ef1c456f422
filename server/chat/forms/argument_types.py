"""Which JSON types a tool's schema gives its parameters, and how text is read by them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from server.chat.json_schema.bounds import kind_of
from server.chat.reply import Tool
from server.chat.scanning import SPACE

# Integers are numbers here.
ANY = frozenset({"string", "number", "boolean", "null", "object", "array"})
STRING = frozenset({"string"})
_DEEPEST = 20
_PYTHON = {"True": "true", "False": "false", "None": "null"}


def parameters_of(tool: Tool) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments; without one, that of any object."""
    schema = tool["function"].get("parameters")
    return {"type": "object", **schema} if isinstance(schema, Mapping) else {"type": "object"}


def chosen_tools(tools: Sequence[Tool], only: str | None) -> list[tuple[int, Tool]]:
    """Return the tools that may be called, with their places in the request."""
    places = enumerate(tools)
    return [(i, tool) for i, tool in places if only in (None, tool["function"]["name"])]


def parameter_types(parameters: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return the types of one parameter of a tool: how its text is read."""
    target = parameters.get("$ref")
    shown = resolved(target, parameters) if isinstance(target, str) else parameters
    properties = {**_properties(shown), **_properties(parameters)}
    return types_of(properties.get(name), parameters)


def _properties(schema: Any) -> Mapping[str, Any]:
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """Return the types that values of `schema` may have; all where it does not say. Follows `$ref` within `root`."""
    return _types(schema, root, {}, 0)


def _types(
    schema: Any, root: Mapping[str, Any], known: dict[str, frozenset[str]], depth: int
) -> frozenset[str]:
    """Return the types. Each `$ref` is followed once, so that the work is bounded by the schema's size."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return ANY

    def inner(part: Any) -> frozenset[str]:
        return _types(part, root, known, depth + 1)

    types = _said(schema)
    target = schema.get("$ref")
    if isinstance(target, str):
        if target not in known:
            known[target] = ANY  # where it leads back to itself
            known[target] = inner(resolved(target, root))
        types &= known[target]
    for keyword in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(keyword), list):
            types &= frozenset().union(*map(inner, choices))
    if isinstance(parts := schema.get("allOf"), list):
        types = types.intersection(*map(inner, parts))
    return types or ANY


def _said(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return what the schema's own keywords say."""
    types = ANY
    named = schema.get("type")
    if isinstance(named, str | list):
        names = [named] if isinstance(named, str) else named
        known = {name for name in names if isinstance(name, str)}
        types &= {"number" if name == "integer" else name for name in known}
    if "const" in schema:
        types &= {kind_of(schema["const"])}
    if isinstance(values := schema.get("enum"), list):
        types &= {kind_of(value) for value in values}
    return types


def resolved(target: str, root: Mapping[str, Any]) -> Any:
    """Return what a `$ref` such as `#/$defs/City` points to; None where there is nothing."""
    if target != "#" and not target.startswith("#/"):
        return None
    found: Any = root
    for step in target[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def as_json(text: str, types: frozenset[str]) -> str:
    """Return `text` as it is if it is JSON of one of `types`, else as a string, less the newline at its end."""
    plain = text.strip(SPACE)
    plain = _PYTHON.get(plain, plain)
    kind = _json_type(plain)
    if kind is not None and ("string" not in types or kind in types - STRING):
        return plain
    return json.dumps(text.removesuffix("\n"), ensure_ascii=False)


def _json_type(text: str) -> str | None:
    """Return the type of a JSON text; None if it is none. Numbers are not converted, however long."""
    try:
        return kind_of(json.loads(text, parse_int=len, parse_float=len, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
