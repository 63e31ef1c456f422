"""`onegpu check-config`: validate a configuration and show what it comes to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.cli.parsing import Commands

_DESCRIPTION = """\
Check FILE as `onegpu serve --config FILE` would read it, ONEGPU_* variables included.
Prints "ok" and every value in force with where it comes from, or all mistakes at once (exit
status 2)."""


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "check-config",
        prog="onegpu check-config",
        help="find the mistakes in a configuration file",
        description=_DESCRIPTION,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("file", type=Path, metavar="FILE", help="the YAML file to check")


def run(options: argparse.Namespace) -> int:
    """Print the values in force. Raises SettingsError with every mistake."""
    from server.settings import load
    from server.settings.report import effective_values

    loaded = load(options.file)
    print(f"{options.file}: ok\n")
    rows = effective_values(loaded)
    names = max(len(row.name) for row in rows)
    values = max(len(row.value) for row in rows)
    for row in rows:
        print(f"{row.name:<{names}}  {row.value:<{values}}  {row.origin}")
    return 0
