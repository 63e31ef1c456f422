"""`onegpu keys`: API keys of a server on this machine, whether it runs or not."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.keys_options import add_limit_flags, described, limits_of, overlap
from server.cli.output import output
from server.cli.parsing import USAGE, Parser
from server.core.errors import OnegpuError

if TYPE_CHECKING:
    from server.cli.parsing import Commands
    from server.store.keys import ApiKey, KeyRepository, NewKey

_DESCRIPTION = """\
Make, list and end the API keys that clients send as `Authorization: Bearer KEY`. A running server
sees every change at once. From the first key on, requests without a valid one are refused, also
when all keys are revoked."""
_CREATE = """\
Make a key and print it, alone, on standard output. It is shown this once: only a hash is stored.
What is not limited here, the server's settings limit."""
_REVOKE = "End keys for good. They stay in the list; what belongs to them stays too."
_ROTATE = """\
Give a key a new secret, and print it as `create` does. Its id, name and limits stay, and what
belongs to it. The old secret ends at once, or after the overlap."""
_HEADS = ("NAME", "KEY", "STATE", "ADMIN", "CREATED", "EXPIRES", "LIMITS")


def add_parser(commands: Commands) -> None:
    """Add the subcommand with its own."""
    parser = commands.add_parser(
        "keys", prog="onegpu keys", help="make, list and end API keys", description=_DESCRIPTION
    )
    parser.set_defaults(run=_help, parser=parser)
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    create = _action(actions, "create", _create, "make a key", _CREATE)
    create.add_argument("name", metavar="NAME", help="whose it is, to tell keys apart")
    add_limit_flags(create)
    _action(actions, "list", _list, "list all keys", "List all keys, without their secrets.")
    revoke = _action(actions, "revoke", _revoke, "end keys", _REVOKE)
    revoke.add_argument("key", nargs="+", metavar="KEY", help="a key's name or ogk_ID")
    rotate = _action(actions, "rotate", _rotate, "give a key a new secret", _ROTATE)
    rotate.add_argument("key", metavar="KEY", help="the key's name or ogk_ID")
    rotate.add_argument(
        "--overlap", metavar="TIME", type=overlap, default=0.0, help="old one's end: 10m, 1d [0]"
    )


def _action(actions: Commands, name: str, run: Any, text: str, description: str) -> Parser:
    parser = actions.add_parser(
        name, prog=f"onegpu keys {name}", help=text, description=description
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--json", action="store_true", help="as JSON, times in Unix seconds")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a YAML file with settings [none]"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the keys are [data_dir]")
    return parser


def _help(options: argparse.Namespace) -> int:
    options.parser.print_help()
    return USAGE


def _create(options: argparse.Namespace) -> int:
    with _repository(options) as keys:
        new = keys.create(
            options.name,
            time.time(),
            limits=limits_of(options),
            expires=options.expires,
            admin=options.admin,
        )
    _tell_secret(options, new, f"The key {new.key.name!r} counts from now on. Keep it:")
    return 0


def _rotate(options: argparse.Namespace) -> int:
    with _repository(options) as keys:
        new = keys.rotate(options.key, time.time(), overlap=options.overlap)
    until = f"counts until {_day(time.time() + options.overlap)}" if options.overlap else "is over"
    _tell_secret(options, new, f"The old secret of {new.key.name!r} {until}. Keep the new one:")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    with _repository(options) as keys:
        ended = keys.revoke(options.key, time.time())
    with output():
        if options.json:
            print(json.dumps([_document(key) for key in ended], indent=1))
        else:
            for key in ended:
                print(f"revoked {_shown(key.name)} ({key.prefix})")
    return 0


def _list(options: argparse.Namespace) -> int:
    with _repository(options) as repository:
        keys = repository.all()
    with output():
        if options.json:
            print(json.dumps([_document(key) for key in keys], indent=1))
        elif not keys:
            print("No keys: onegpu keys create NAME makes one.")
        else:
            _print_table(keys)
    return 0


def _print_table(keys: list[ApiKey]) -> None:
    rows = [_HEADS, *(_row(key) for key in keys)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(key: ApiKey) -> tuple[str, ...]:
    return (
        _shown(key.name),
        key.prefix,
        key.state(time.time()),
        "yes" if key.admin else "-",
        _day(key.created),
        "-" if key.expires is None else _day(key.expires),
        _shown(described(key.limits)),
    )


def _document(key: ApiKey) -> dict[str, Any]:
    told = {**asdict(key), "prefix": key.prefix, "state": key.state(time.time())}
    limits: dict[str, Any] = told.pop("limits")
    return told | limits


def _tell_secret(options: argparse.Namespace, new: NewKey, text: str) -> None:
    """Print the secret; all else goes to standard error, so that `KEY=$(onegpu keys …)` works."""
    try:
        with output():
            if options.json:
                print(json.dumps(_document(new.key) | {"key": new.secret}, indent=1))
            else:
                print(_shown(text, sys.stderr.encoding), file=sys.stderr, flush=True)
                print(new.secret)
    except (OnegpuError, SystemExit):
        print(
            f"Nobody has read the secret: `onegpu keys rotate {new.key.prefix}` draws a new one.",
            file=sys.stderr,
        )
        raise


def _shown(text: str, encoding: str | None = None) -> str:
    """Return `text` in characters that the terminal has."""
    encoding = encoding or sys.stdout.encoding or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@contextlib.contextmanager
def _repository(options: argparse.Namespace) -> Iterator[KeyRepository]:
    from server.store.connection import open_database
    from server.store.keys import KeyRepository

    with open_database(_directory(options)) as database:
        yield KeyRepository(database)


def _directory(options: argparse.Namespace) -> Path:
    from server.settings import Override, load

    given = options.data_dir
    flags = [] if given is None else [Override(("data_dir",), "--data-dir", given)]
    return load(options.config, flags=flags).settings.data_dir
