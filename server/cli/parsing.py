"""What the command adds to argparse: readable help, short errors that name the nearest flag."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

USAGE = 2
"""Exit status for a wrong command line or configuration."""

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - it has no public name
"""What a subcommand adds its parser to."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps descriptions as they are written, and options and their help side by side."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)
        self._action_max_length = 16  # argparse forgets the indentation of subcommands


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors point to --help instead of repeating usage."""

    def __init__(self, *, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print `message` on standard error and exit with `USAGE`."""
        self.exit(USAGE, f"{self.prog}: {message}\nTry `{self.prog} --help`.\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Report arguments that nothing knows, with the nearest flag of this parser."""
        name = unknown[0].partition("=")[0]
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(name, flags, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"unknown argument {name}{hint}")
