"""One schema of a document while it is written anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.chat.json_schema.references import Document
from server.chat.json_schema.refusal import Pointer, Refused

Written = dict[str, Any]


class Walk(Protocol):
    """What goes through the document."""

    document: Document

    def schema(self, schema: Any, at: Pointer) -> Any:
        """Rewrite a schema that lies inside another one."""
        ...

    def reference(self, target: Pointer) -> Written:
        """Return the rewritten reference to what lies there."""
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
        found: Any = self.schema
        for key in keys:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return self.walk.schema(found, (*self.at, *keys))

    def also(self, *schemas: Any) -> None:
        """Demand these, too."""
        self.written.setdefault("allOf", []).extend(schemas)

    def refused(self, keyword: str, why: str = "is not supported") -> Refused:
        """Return the refusal of a keyword here."""
        return Refused(f"'{keyword}' {why}", self.at)
