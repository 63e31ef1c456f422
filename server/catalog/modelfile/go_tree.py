"""Go's text/template syntax as a tree: the part of it that Ollama's templates use.

Source of the rules: the documentation of Go's text/template and text/template/parse. What is not
known here is an error; nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

DEEPEST = 100
"""Nested blocks, or nested parentheses."""


class GoTemplateError(Exception):
    """A template that is not converted; `offset` is where, in characters from its start."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.message = message


@dataclass(frozen=True, slots=True)
class Constant:
    """A string, whole number, boolean, or None for nil."""

    offset: int
    value: str | int | bool | None


@dataclass(frozen=True, slots=True)
class Path:
    """`.A.B`, `$x.A`, `$` or `.`: `variable` is None for the dot."""

    offset: int
    variable: str | None
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its arguments; a pipeline's earlier command is the last argument."""

    offset: int
    function: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Fields of what stands in parentheses."""

    offset: int
    base: Expression
    fields: tuple[str, ...]


Expression = Constant | Path | Call | Chain


@dataclass(frozen=True, slots=True)
class Pipe:
    """An expression, and the variables that take its value."""

    offset: int
    variables: tuple[str, ...]
    declares: bool
    """`:=`, not `=`."""
    value: Expression


@dataclass(frozen=True, slots=True)
class Text:
    """What is written as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """`{{ pipe }}`: writes the value, unless it goes to a variable."""

    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Block:
    """`if`, `range` or `with`."""

    keyword: str
    pipe: Pipe
    body: tuple[Node, ...]
    orelse: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Jump:
    """`break` or `continue`."""

    offset: int
    keyword: str


Node = Text | Action | Block | Jump
