"""`onegpu rm`: remove a model from the models folder."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.cli.pull_options import add_library_flags, library_of, load_settings
from server.core.errors import ConfigError

if TYPE_CHECKING:
    from server.catalog.library import Library
    from server.catalog.library_entries import Entry
    from server.cli.parsing import Commands

_DESCRIPTION = """\
Remove NAME's files from the models folder: all parts of a split model, and what a broken-off
download left. NAME is as `onegpu list` shows it. What Ollama or the hub's cache hold is not
touched. A server that runs the model keeps it until it ends."""


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "rm", prog="onegpu rm", help="remove a downloaded model", description=_DESCRIPTION
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("name", nargs="+", metavar="NAME", help="what to remove")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add_library_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Remove after asking. Raises ConfigError for what is not there or not ours."""
    from server.catalog.download_choice import size_text

    library = library_of(load_settings(options))
    # All names first: a mistake in the last one must not come after a removal.
    entries = dict.fromkeys(_one(library, name) for name in options.name)
    for entry in entries:
        if not options.yes and not _confirmed(entry):
            print(f"{entry.name} stays.")
            continue
        freed = library.remove(entry)
        print(f"removed {entry.name}: {size_text(freed)} freed")
    return 0


def _one(library: Library, name: str) -> Entry:
    found = library.named(name)
    ours = [entry for entry in found if entry.ours]
    if not found:
        raise ConfigError(f"There is no {name} here. `onegpu list` shows what is.")
    if not ours:
        entry = found[0]
        raise ConfigError(
            f"{name} belongs to {entry.source} ({entry.path}); remove it with its own tool."
        )
    if len(ours) > 1:
        names = ", ".join(told_apart(ours))
        raise ConfigError(f"{name} may be any of {names}. Name one.")
    return ours[0]


def told_apart(entries: Sequence[Entry]) -> list[str]:
    """Return a name for each that means it alone: its path, where others have the same name."""
    count = Counter(entry.name for entry in entries)
    return [entry.name if count[entry.name] == 1 else str(entry.path) for entry in entries]


def _confirmed(entry: Entry) -> bool:
    """Ask on a terminal; elsewhere nobody could answer, and `-y` says it is meant."""
    from server.catalog.download_choice import size_text

    if not sys.stdin.isatty():
        raise ConfigError(f"Not on a terminal: say `onegpu rm -y {entry.name}` to remove it.")
    files = len(entry.files)
    what = f"{size_text(entry.size)}" + (f" in {files} files" if files > 1 else "")
    print(f"Remove {entry.name} ({what}, {entry.path})? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
