"""Which JSON types a tool's schema gives its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.chat.reply import Tool

# Integers are numbers here.
ANY = frozenset({"string", "number", "boolean", "null", "object", "array"})
_DEEPEST = 20


def parameters_of(tool: Tool) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments; without one, that of any object."""
    schema = tool["function"].get("parameters")
    return schema if isinstance(schema, Mapping) else {"type": "object"}


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """Return the types that values of `schema` may have; all where it does not say. Follows `$ref` within `root`."""
    return _types(schema, root, set(), 0)


def _types(schema: Any, root: Mapping[str, Any], seen: set[str], depth: int) -> frozenset[str]:
    """Return the types. Each `$ref` is followed once, so that the work is bounded by the schema's size."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return ANY

    def inner(part: Any) -> frozenset[str]:
        return _types(part, root, seen, depth + 1)

    types = _said(schema)
    target = schema.get("$ref")
    if isinstance(target, str) and target not in seen:
        seen.add(target)
        types &= inner(resolved(target, root))
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
        types &= {type_of(schema["const"])}
    if isinstance(values := schema.get("enum"), list):
        types &= {type_of(value) for value in values}
    return types


def resolved(target: str, root: Mapping[str, Any]) -> Any:
    """Return what a `$ref` such as `#/$defs/City` points to; None where there is nothing."""
    if not target.startswith("#"):
        return None
    found: Any = root
    for step in target[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def type_of(value: Any) -> str:
    """Return the JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    if value is None:
        return "null"
    return "object" if isinstance(value, Mapping) else "array"
