"""One schema of a document while it, or its negation, is written anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.chat.json_schema.disjoint import Disjointness
from server.chat.json_schema.references import Document
from server.chat.json_schema.refusal import Pointer, Refused

Written = dict[str, Any]


class Walk(Protocol):
    """What goes through the document."""

    document: Document
    disjoint: Disjointness

    def schema(self, schema: Any, at: Pointer) -> Any:
        """Rewrite a schema that lies inside another one."""
        ...

    def negation(self, schema: Any, at: Pointer) -> Any:
        """Write what admits the values that the schema does not admit."""
        ...

    def reference(self, target: Pointer, *, negated: bool = False) -> Written:
        """Return the reference to what lies there, or to its negation, written once."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A schema, where it lies, and what has been written for it so far."""

    walk: Walk
    schema: Mapping[str, Any]
    at: Pointer
    written: Written = field(default_factory=dict)

    def inner(self, *keys: str) -> Any:
        """Rewrite the schema that lies at these keys."""
        return self.walk.schema(self.held(*keys), (*self.at, *keys))

    def negated(self, *keys: str) -> Any:
        """Write the negation of the schema that lies at these keys."""
        return self.walk.negation(self.held(*keys), (*self.at, *keys))

    def reference(self, *keys: str, negated: bool = False) -> Any:
        """As `inner` and `negated`, for what is needed more than once."""
        found = self.held(*keys)
        if isinstance(found, bool):
            return found is not negated
        return self.walk.reference((*self.at, *keys), negated=negated)

    def held(self, *keys: str) -> Any:
        """Return what lies at these keys."""
        found: Any = self.schema
        for key in keys:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found

    def listed(self, keyword: str) -> list[tuple[str, str]]:
        """Return the keys of each schema in a list of schemas."""
        schemas = self.schema[keyword]
        if not isinstance(schemas, list) or not schemas:
            raise self.refused(keyword, "must be a list with a schema in it")
        return [(keyword, str(i)) for i in range(len(schemas))]

    def named(self, keyword: str) -> dict[str, Any]:
        """Return an object of schemas or names as it stands."""
        found = self.schema[keyword]
        if not isinstance(found, dict):
            raise self.refused(keyword, "must be an object")
        return found

    def also(self, *schemas: Any) -> None:
        """Demand these, too."""
        self.written.setdefault("allOf", []).extend(schemas)

    def refused(self, keyword: str, why: str = "is not supported") -> Refused:
        """Return the refusal of a keyword here."""
        return Refused(f"'{keyword}' {why}", self.at)
