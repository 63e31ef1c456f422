"""What would be too much for the compiler of grammars: it would die of it, or compute something else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from server.chat.json_schema.refusal import Refused

MAX_LEVELS = 600
"""Schemas in each other, references followed. Its recursion kills the process at some 1,500 of 8 MiB of stack."""
MAX_ITEMS = 20_000
"""All `minItems` and `maxItems` together: each is a rule of the grammar."""
MAX_MULTIPLE = 10_000
"""The least common multiple of all `multipleOf`, in units of their last digit. It has that many states; beyond
65,535 its product would overflow."""


def check_compilable(schema: Any, definitions: Mapping[str, Any]) -> None:
    """Raise `Refused` if a rewritten schema must not reach the compiler."""
    levels = items = 0
    multiples: set[Fraction] = set()
    for written in (schema, *definitions.values()):
        referring = 0
        for level, inner in _all(written):
            referring = max(referring, level if "$ref" in inner else 0)
            items += max(inner.get("minItems", 0), inner.get("maxItems", 0))
            if "multipleOf" in inner:
                multiples.add(Fraction(str(inner["multipleOf"])))
        levels += referring
    if levels > MAX_LEVELS:
        raise Refused(f"its '$ref' lead through {levels} levels of schemas, {MAX_LEVELS} at most")
    if items > MAX_ITEMS:
        raise Refused(
            f"its 'minItems' and 'maxItems' are {items:,} together, {MAX_ITEMS:,} at most"
        )
    digits = next(n for n in range(400) if all((m * 10**n).denominator == 1 for m in multiples))
    if math.lcm(*(int(multiple * 10**digits) for multiple in multiples)) > MAX_MULTIPLE:
        raise Refused(f"its 'multipleOf' have a common multiple beyond {MAX_MULTIPLE:,} units")


def inside(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas directly inside a rewritten one."""
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield schema[keyword]
    for keyword in ("allOf", "anyOf", "prefixItems"):
        yield from schema.get(keyword, ())
    for keyword in ("properties", "patternProperties"):
        yield from schema.get(keyword, {}).values()


def _all(schema: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A rewritten schema and all in it, each with its level, from 1 on."""
    pending = [(1, schema)]
    while pending:
        level, here = pending.pop()
        if isinstance(here, dict):
            yield level, here
            pending += [(level + 1, inner) for inner in inside(here)]
