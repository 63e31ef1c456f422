"""Whether two schemas can hold together: alternatives of `oneOf` that cannot are an `anyOf`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.chat.json_schema.bounds import KINDS, kind_of
from server.chat.json_schema.others import identity
from server.chat.json_schema.references import Document
from server.chat.json_schema.refusal import Pointer

_MAX_STEPS = 20_000

Part = Mapping[str, Any]


class Disjointness:
    """Proves it for one document; after so many steps it proves nothing more."""

    def __init__(self, document: Document) -> None:
        """Begin to count the steps."""
        self._document = document
        self._steps = 0

    def proven(self, first: Pointer, second: Pointer) -> bool:
        """Whether no value can match both schemas, as types, values and properties show."""
        self._steps += 1
        one, other = self._document.at(first), self._document.at(second)
        if one is False or other is False:
            return True
        if self._steps > _MAX_STEPS or not isinstance(one, dict) or not isinstance(other, dict):
            return False
        if self._each(first, second) or self._each(second, first):
            return True
        ones, others = self._document.places(first), self._document.places(second)
        self._steps += len(ones) * len(others) - 1
        parts = [self._document.at(at) for at in (*ones, *others)]
        kinds = set(KINDS).intersection(*map(_kinds, parts))
        if not kinds or _values_apart(parts):
            return True
        return kinds == {"object"} and any(
            self._objects(a, b) or self._objects(b, a) for a in ones for b in others
        )

    def _each(self, first: Pointer, second: Pointer) -> bool:
        """Whether every alternative of the one is apart from the other."""
        schema = self._document.at(first)
        for keyword in ("anyOf", "oneOf"):
            listed = schema.get(keyword)
            if isinstance(listed, list) and all(
                self.proven((*first, keyword, str(i)), second) for i in range(len(listed))
            ):
                return True
        return False

    def _objects(self, first: Pointer, second: Pointer) -> bool:
        """Whether a property that the first requires keeps them apart."""
        one, other = self._document.at(first), self._document.at(second)
        required = one.get("required")
        known, theirs = one.get("properties", {}), other.get("properties", {})
        if not isinstance(required, list) or not isinstance(theirs, dict):
            return False
        closed = other.get("additionalProperties") is False and "patternProperties" not in other
        for name in required:
            if not isinstance(name, str):
                return False
            if name not in theirs:
                if closed:
                    return True
            elif (
                isinstance(known, dict)
                and name in known
                and self.proven((*first, "properties", name), (*second, "properties", name))
            ):
                return True
        return False


def _kinds(part: Part) -> set[str]:
    kinds = set(KINDS)
    if "type" in part:
        types = part["type"]
        listed = {types} if isinstance(types, str) else {t for t in types if isinstance(t, str)}
        kinds &= listed | ({"number"} if "integer" in listed else set())
    values = _values(part)
    return kinds if values is None else kinds & {kind_of(value) for value in values}


def _values(part: Part) -> Sequence[Any] | None:
    if "const" in part:
        return [part["const"]]
    listed = part.get("enum")
    return listed if isinstance(listed, list) else None


def _values_apart(parts: Sequence[Part]) -> bool:
    listed = [{identity(value) for value in _values(part) or ()} for part in parts if _values(part)]
    return bool(listed) and not listed[0].intersection(*listed[1:])
