"""What answers may be made of: sources, and the seam behind which they are compiled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

GrammarKind = Literal["json_schema", "regex", "lark", "gbnf"]


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A grammar as text. Equal ones are compiled once."""

    kind: GrammarKind
    text: str
    """The schema as JSON, a regular expression, or a grammar in llguidance's Lark or in GBNF."""
    param: str = field(default="", compare=False)
    """The request's field that it comes from: errors name it."""


class CompiledGrammar(Protocol):
    """Opaque and shared; only the backend whose vocabulary it was compiled for can follow it."""


class Grammars(Protocol):
    """Compiles for one vocabulary. For any thread; not for the event loop or the engine's thread."""

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        """Return it, from a cache if it is there. Raises `InvalidRequest` that says what cannot be done."""
        ...
