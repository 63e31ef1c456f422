"""`onegpu check-config`: validate a configuration and show what it comes to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.cli.parsing import Commands
    from server.settings import Settings
    from server.settings.report import Row

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
    rows = [*map(_as_tuned(loaded.settings), effective_values(loaded))]
    names = max(len(row.name) for row in rows)
    values = max(len(row.value) for row in rows)
    for row in rows:
        print(f"{row.name:<{names}}  {row.value:<{values}}  {row.origin}")
    return 0


def _as_tuned(settings: Settings) -> Callable[[Row], Row]:
    """Return what puts into a row what a profile of the first model sets, if `serve` would take one."""
    if not settings.tuned_dir.is_dir():
        return lambda row: row
    from dataclasses import replace

    from server.assembly.tuning.tune import profile_of
    from server.core.errors import OnegpuError
    from server.settings.report import text_of

    try:
        profile = profile_of(settings, lambda text: _here(text, settings))
    except OnegpuError as error:
        print(f"Whether there is a profile for the model cannot be said: {error.message}\n")
        profile = None
    if profile is None:
        return lambda row: row

    def tuned(row: Row) -> Row:
        if row.name not in profile.settings:
            return row
        value = text_of(profile.settings[row.name])
        return replace(row, value=value, origin=f"tuned ({profile.path})")

    return tuned


def _here(text: str, settings: Settings) -> Path:
    """Return the file of a model that is on this machine. Raises `ConfigError`."""
    from server.cli.pull_options import library_of
    from server.core.errors import ConfigError

    library = library_of(settings)
    ref = library.catalogue.parse(text)
    found = library.find(ref) or ref.path
    if found is None or not found.is_file():
        raise ConfigError(f"{text} is not here.")
    return found
