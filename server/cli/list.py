"""`onegpu list`: the models on this machine."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.pull_options import add_library_flags, library_of, load_settings

if TYPE_CHECKING:
    from server.catalog.library_entries import Entry
    from server.cli.parsing import Commands

_DESCRIPTION = """\
List the models on this machine: those in the models folder, and those of Ollama and of the hub's
cache, which can be served as well. `onegpu pull --list` shows what can be downloaded."""
_HEADS = ("NAME", "QUANT", "SIZE", "SOURCE", "MODIFIED")


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "list",
        prog="onegpu list",
        help="list the models on this machine",
        description=_DESCRIPTION,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    add_library_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    entries = library_of(load_settings(options)).entries()
    if options.json:
        print(json.dumps([_document(entry) for entry in entries], indent=1))
        return 0
    if not entries:
        print("No models here. Get one: onegpu pull qwen3:8b (onegpu pull --list: all names)")
        return 0
    rows = [_HEADS, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    for entry in entries:
        if entry.problem is not None:
            print(f"\n{entry.name}: {entry.problem}")
    return 0


def _row(entry: Entry) -> tuple[str, ...]:
    from server.catalog.download_choice import size_text

    modified = dt.datetime.fromtimestamp(entry.modified).astimezone()
    mark = "" if entry.problem is None else " !"
    return (
        f"{entry.name}{mark}",
        entry.quant or "-",
        size_text(entry.size),
        entry.source,
        modified.strftime("%Y-%m-%d %H:%M"),
    )


def _document(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "quant": entry.quant,
        "size": entry.size,
        "source": entry.source,
        "modified": entry.modified,
        "path": str(Path(entry.path)),
        "problem": entry.problem,
    }
