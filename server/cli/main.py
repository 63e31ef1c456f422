"""Entry point of the `onegpu` command.

Exit status: 0 done, 1 failed while running, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from server import __version__
from server.cli import (
    bench,
    check_config,
    keys,
    plan,
    ps,
    pull,
    rm,
    run,
    serve,
    show,
    stop,
    tune,
    version,
)
from server.cli import list as list_models
from server.cli.output import open_what_was_closed, output, speak_its_encoding
from server.cli.parsing import USAGE, Parser
from server.core.errors import ConfigError, OnegpuError

FAILURE, INTERRUPTED = 1, 130
COMMANDS = (
    serve,
    run,
    plan,
    pull,
    list_models,
    show,
    rm,
    ps,
    stop,
    keys,
    tune,
    bench,
    check_config,
    version,
)
"""A module for each subcommand, in the order of the help."""

_DESCRIPTION = """\
One process that hosts a GGUF model and serves it OpenAI-compatible from a fixed pool of slots."""
_EPILOG = """\
examples:
  onegpu serve models/demo.gguf            serve the model that comes along, on 127.0.0.1:8000
  onegpu serve --help                      what can be set, and what it means
  onegpu plan qwen3:32b --vram 24GiB       what fits a card, before anything is downloaded
  onegpu run qwen3:4b                      a chat in the terminal
  onegpu check-config onegpu.yaml          find every mistake before starting

Exit status: 0 done, 1 failed while running, 2 wrong usage or configuration."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's) and return the exit status."""
    open_what_was_closed()
    speak_its_encoding()
    parser = build_parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        options.parser.refuse(unknown)
    if options.run is None:
        parser.print_help()
        return USAGE
    try:
        with output():
            status: int = options.run(options)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return USAGE
    except OnegpuError as error:
        print(f"onegpu: {error.message}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def build_parser() -> Parser:
    """Build the whole command line: options and subcommands."""
    parser = Parser(prog="onegpu", description=_DESCRIPTION, epilog=_EPILOG)
    parser.set_defaults(run=None, parser=parser)
    parser.add_argument(
        "--version", action="version", help="print the version", version=f"onegpu {__version__}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for module in COMMANDS:
        module.add_parser(commands)
    return parser
