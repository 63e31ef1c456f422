"""What keywords beside it evaluate: `unevaluatedProperties` and `unevaluatedItems` are for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.chat.json_schema.references import Document
from server.chat.json_schema.refusal import Pointer

_CHOOSING = {"anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "$dynamicRef"}


@dataclass(slots=True)
class Properties:
    """The properties that something else looks at."""

    names: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    everything: bool = False


def evaluated_properties(document: Document, at: Pointer) -> Properties | None:
    """Return them for the schema there, or None where it depends on the answer."""
    known = Properties()
    parts = document.parts(at)
    for part in parts:
        if part.keys() & _CHOOSING:
            return None
        known.names += _keys(part, "properties")
        known.patterns += _keys(part, "patternProperties")
        inside = part is not parts[0] and "unevaluatedProperties" in part
        known.everything |= inside or "additionalProperties" in part
    return known


@dataclass(frozen=True, slots=True)
class Items:
    """The items that something else looks at."""

    first: int | None
    """So many from the start, or all."""


def evaluated_items(document: Document, at: Pointer) -> Items | None:
    """Return them for the schema there, or None where it depends on the answer."""
    first = 0
    everything = False
    parts = document.parts(at)
    for part in parts:
        if part.keys() & (_CHOOSING | {"contains"}):
            return None
        listed = part.get("items")
        before = listed if isinstance(listed, list) else part.get("prefixItems")
        first = max(first, len(before) if isinstance(before, list) else 0)
        inside = part is not parts[0] and "unevaluatedItems" in part
        everything |= inside or ("additionalItems" if isinstance(listed, list) else "items") in part
    return Items(None if everything else first)


def _keys(part: Mapping[str, Any], keyword: str) -> list[str]:
    held = part.get(keyword)
    return list(held) if isinstance(held, dict) else []
