"""Which running server a command speaks to, and the key that it presents."""

from __future__ import annotations

import argparse
import getpass
import sys

from server.core.errors import ConfigError


def add_server_flags(parser: argparse._ActionsContainer) -> None:
    """Add what says which server is meant."""
    parser.add_argument("--url", metavar="URL", help="where it listens [http://127.0.0.1:8000]")
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="the key that it asks for; -: read it from standard input [ONEGPU_KEY]. All users of "
        "this machine can see KEY itself in its list of processes",
    )


def key_of(options: argparse.Namespace) -> str | None:
    """Return the key to present: the flag's, else the variable's. Raises `ConfigError`.

    `-` takes the first line of standard input and leaves the rest, or asks at a terminal.
    """
    from server.settings.environment import KEY_VARIABLE, read_environment

    given: str | None = options.key
    if given is None:
        return read_environment().get(KEY_VARIABLE) or None
    if given != "-":
        return given
    if sys.stdin is not None and sys.stdin.isatty():
        line = getpass.getpass("Key: ")
    else:
        line = "" if sys.stdin is None else sys.stdin.readline()
    if not line.strip():
        raise ConfigError(f"There is no key on standard input. {KEY_VARIABLE} can have it, too.")
    return line.strip()
