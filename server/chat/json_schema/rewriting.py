"""A client's schema, written anew with the keywords alone that are known to be enforced right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from server.chat.json_schema.disjoint import Disjointness
from server.chat.json_schema.keywords import HANDLERS, PLAIN
from server.chat.json_schema.negation import alternatives
from server.chat.json_schema.place import Place, Written
from server.chat.json_schema.references import Document
from server.chat.json_schema.refusal import Pointer, Refused

_MAX_TARGETS = 2_000


class Rewriter:
    """One document's rewriting. What is referred to becomes a definition, so recursion is finite."""

    def __init__(self, root: Any) -> None:
        """Index the document. Raises `Refused`."""
        self.document = Document(root)
        self.disjoint = Disjointness(self.document)
        self._names: dict[tuple[Pointer, bool], str] = {}
        self._pending: list[tuple[Pointer, bool]] = []

    def run(self) -> tuple[Any, dict[str, Any]]:
        """Return the schema and its definitions. Raises `Refused`."""
        root = self.schema(self.document.at(()), ())
        definitions = {}
        while self._pending:
            at, negated = self._pending.pop()
            write = self.negation if negated else self.schema
            definitions[self._names[at, negated]] = write(self.document.at(at), at)
        return root, definitions

    def schema(self, schema: Any, at: Pointer) -> Any:
        """Rewrite one schema, with all in it."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise Refused("a schema must be an object or a boolean", at)
        here = Place(self, schema, at)
        with _placed(at):
            for keyword in schema:
                if keyword in HANDLERS:
                    HANDLERS[keyword](here, keyword)
        return here.written

    def negation(self, schema: Any, at: Pointer) -> Any:
        """Write what admits the values that the schema does not admit."""
        if isinstance(schema, bool):
            return not schema
        if not isinstance(schema, dict):
            raise Refused("a schema must be an object or a boolean", at)
        here = Place(self, schema, at)
        with _placed(at):
            for keyword in schema.keys() & PLAIN:
                HANDLERS[keyword](here, keyword)  # refuses what is wrong in it
            ways = alternatives(here)
        return {"anyOf": ways} if ways else False

    def reference(self, target: Pointer, *, negated: bool = False) -> Written:
        """Return the reference to the definition that stands for what lies there."""
        if (target, negated) not in self._names:
            if len(self._names) == _MAX_TARGETS:
                raise Refused(f"'$ref' has more than {_MAX_TARGETS:,} targets")
            self._names[target, negated] = f"d{len(self._names)}"
            self._pending.append((target, negated))
        return {"$ref": f"#/$defs/{self._names[target, negated]}"}


@contextmanager
def _placed(at: Pointer) -> Iterator[None]:
    """Name the place in refusals that do not."""
    try:
        yield
    except Refused as refused:
        raise Refused(refused.reason, refused.at or at) from refused
