"""`onegpu version`: what is installed, for bug reports."""

from __future__ import annotations

import argparse
import platform
from typing import TYPE_CHECKING

from server import __version__

if TYPE_CHECKING:
    from server.cli.parsing import Commands

_PARTS = ("llama-cpp-python", "fastapi", "uvicorn", "pydantic")


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "version",
        prog="onegpu version",
        help="print versions, for bug reports",
        description="Print the versions of onegpu and of what it stands on.",
    )
    parser.set_defaults(run=run, parser=parser)


def run(_options: argparse.Namespace) -> int:
    """Print versions from package metadata; nothing heavy is imported."""
    from importlib import metadata

    print(f"onegpu {__version__}")
    for name in _PARTS:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        print(f"{name} {found}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    return 0
