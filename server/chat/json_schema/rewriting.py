"""A client's schema, written anew with the keywords alone that are known to be enforced right."""

from __future__ import annotations

from typing import Any

from server.chat.json_schema.keywords import HANDLERS
from server.chat.json_schema.place import Place, Written
from server.chat.json_schema.references import Document
from server.chat.json_schema.refusal import Pointer, Refused

_MAX_TARGETS = 2_000


class Rewriter:
    """One document's rewriting. What is referred to becomes a definition, so recursion is finite."""

    def __init__(self, root: Any) -> None:
        """Index the document. Raises `Refused`."""
        self.document = Document(root)
        self._names: dict[Pointer, str] = {}
        self._pending: list[Pointer] = []

    def run(self) -> tuple[Any, dict[str, Any]]:
        """Return the schema and its definitions. Raises `Refused`."""
        root = self.schema(self.document.at(()), ())
        definitions = {}
        while self._pending:
            at = self._pending.pop()
            definitions[self._names[at]] = self.schema(self.document.at(at), at)
        return root, definitions

    def schema(self, schema: Any, at: Pointer) -> Any:
        """Rewrite one schema, with all in it."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise Refused("a schema must be an object or a boolean", at)
        here = Place(self, schema, at)
        for keyword in schema:
            if keyword in HANDLERS:
                try:
                    HANDLERS[keyword](here, keyword)
                except Refused as refused:
                    raise Refused(refused.reason, refused.at or at) from refused
        return here.written

    def reference(self, target: Pointer) -> Written:
        """Return the reference to the definition that stands for what lies there."""
        if target not in self._names:
            if len(self._names) == _MAX_TARGETS:
                raise Refused(f"'$ref' has more than {_MAX_TARGETS:,} targets")
            self._names[target] = f"d{len(self._names)}"
            self._pending.append(target)
        return {"$ref": f"#/$defs/{self._names[target]}"}
