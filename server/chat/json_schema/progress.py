"""Recursion in a rewritten schema: it must come to an end, for the compiler and for the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.chat.json_schema.bounds import KINDS
from server.chat.json_schema.refusal import Refused

_MAX_STEPS = 1_000_000

Able = set[tuple[str, str]]
"""Definitions and types of which some finite value exists."""


def progressing(schema: Any, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definitions that some finite value matches, and `false` for the others.

    Raises `Refused` where a reference leads to itself, or where no finite value matches the schema.
    """
    _check_loops(definitions)
    able = _able(definitions)
    if not _some(schema, able):
        raise Refused("no finite value can match it: endless recursion, or parts that contradict")
    matched = {name for name, _ in able}
    return {name: name in matched and held for name, held in definitions.items()}


def without_empty(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Write `false` for what refers to a definition that is `false`: the compiler refuses those."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema and definitions[target(schema)] is False:
        return False
    written = dict(schema)
    for keyword, held in schema.items():
        if keyword in ("items", "additionalProperties"):
            written[keyword] = without_empty(held, definitions)
        elif keyword in ("allOf", "anyOf", "prefixItems"):
            written[keyword] = [without_empty(member, definitions) for member in held]
        elif keyword in ("properties", "patternProperties"):
            written[keyword] = {k: without_empty(member, definitions) for k, member in held.items()}
    return written


def _check_loops(definitions: Mapping[str, Any]) -> None:
    """Every definition's references in place must lead away from it."""
    edges = {name: set(_in_place(held)) for name, held in definitions.items()}
    done: set[str] = set()
    for start, first in edges.items():
        path: dict[str, Iterator[str]] = {} if start in done else {start: iter(first)}
        while path:
            name, following = next(reversed(path.items()))
            target = next(following, None)
            if target is None:
                done.add(name)
                del path[name]
            elif target in path:
                raise Refused("'$ref' leads back to itself without any progress: endless recursion")
            elif target not in done:
                path[target] = iter(edges[target])


def _in_place(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield target(schema)
        for keyword in ("allOf", "anyOf"):
            for member in schema.get(keyword, ()):
                yield from _in_place(member)


def target(schema: Mapping[str, Any]) -> str:
    """Return the definition's name that a rewritten reference names."""
    return str(schema["$ref"]).rpartition("/")[2]


def _able(definitions: Mapping[str, Any]) -> Able:
    """The least fixpoint: what has a finite value, given what is known to have one."""
    able: Able = set()
    size = sum(_size(held) for held in definitions.values())
    steps, order = 0, list(definitions)
    while True:
        before = len(able)
        order.reverse()  # chains of references go one way, mostly
        for name in order:
            able |= {(name, kind) for kind in KINDS if _finite(definitions[name], kind, able)}
        steps += size
        if len(able) == before:
            return able
        if steps > _MAX_STEPS:
            raise Refused("its references are too intricate")


def _finite(schema: Any, kind: str, able: Able) -> bool:
    """Whether some finite value of that type seems to match."""
    if isinstance(schema, bool):
        return schema
    here = "type" not in schema or _allows(schema["type"], kind)
    here = here and ("$ref" not in schema or (target(schema), kind) in able)
    here = here and all(_finite(member, kind, able) for member in schema.get("allOf", ()))
    if "anyOf" in schema:
        here = here and any(_finite(member, kind, able) for member in schema["anyOf"])
    return here and all(_some(member, able) for member in _needed(schema, kind))


def _some(schema: Any, able: Able) -> bool:
    return any(_finite(schema, kind, able) for kind in KINDS)


def _needed(schema: Mapping[str, Any], kind: str) -> list[Any]:
    """The schemas of what no value of that type can be without."""
    if kind == "object":
        return [_property(schema, name) for name in schema.get("required", ())]
    least = schema.get("minItems", 0) if kind == "array" else 0
    first = schema.get("prefixItems", [])[:least]
    return [*first, schema.get("items", True)] if least > len(first) else first


def _property(schema: Mapping[str, Any], name: str) -> Any:
    known = schema.get("properties", {})
    if name in known:
        return known[name]
    return True if schema.get("patternProperties") else schema.get("additionalProperties", True)


def _allows(types: Any, kind: str) -> bool:
    named = [types] if isinstance(types, str) else types
    return kind in named or (kind == "number" and "integer" in named)


def _size(schema: Any) -> int:
    if isinstance(schema, dict):
        return 1 + sum(_size(value) for value in schema.values())
    return 1 + sum(_size(value) for value in schema) if isinstance(schema, list) else 1
