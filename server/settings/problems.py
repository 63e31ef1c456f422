"""What is wrong with a configuration, and where: told all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.core.errors import ConfigError

KeyPath = tuple[str, ...]
"""Keys from the top of the file down to a setting."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from. `where` is `file:line`, the variable's name or the flag."""

    kind: Literal["default", "file", "environment", "flag"]
    where: str = ""

    def __str__(self) -> str:
        return self.where or self.kind


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, which setting it is about (empty: none), and what is allowed."""

    where: str
    path: KeyPath
    message: str

    def __str__(self) -> str:
        parts = (self.where, ".".join(self.path), self.message)
        return ": ".join(part for part in parts if part)


class SettingsError(ConfigError):
    """The configuration cannot be used; `problems` has every mistake that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "The configuration has an error:" if count == 1 else f"{count} configuration errors:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))
