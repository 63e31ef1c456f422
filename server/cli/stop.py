"""`onegpu stop`: have a running server unload a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from server.core.errors import ConfigError

if TYPE_CHECKING:
    from server.cli.parsing import Commands

_DESCRIPTION = """\
Have a running server unload MODEL and give its memory back; names that share its weights go with
it. Running requests are finished first, and the next request for MODEL loads it again. The server
itself goes on: Ctrl-C or SIGTERM ends it."""


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    from server.cli.server_flags import add_server_flags

    parser = commands.add_parser(
        "stop",
        prog="onegpu stop",
        help="have a running server unload a model",
        description=_DESCRIPTION,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("model", metavar="MODEL", help="a name that `onegpu ps` lists")
    add_server_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Ask for it. Raises `ConfigError` for an unknown name and `ServerError`."""
    from server.cli.chat.client import Client, ServerError
    from server.cli.chat.url import DEFAULT_URL
    from server.cli.server_flags import key_of

    client = Client(options.url or DEFAULT_URL, key_of(options))
    cards = {card["id"]: card for card in client.models()}
    if options.model not in cards:
        has = ", ".join(cards) or "nothing"
        raise ConfigError(f"{client.url} serves no model {options.model}. It serves {has}.")
    card = cards[options.model]
    if card.get("state") in ("unloaded", "failed"):
        print(f"{options.model} is not loaded.")
        return 0
    try:
        client.post("/models/unload", {"model": options.model})
    except ServerError as error:
        if error.status not in (404, 405):
            raise
        message = f"The server at {client.url} cannot unload models: it is too old, or another one."
        raise ServerError(message, status=error.status) from error
    weights = card.get("weights")
    sharing = [name for name, other in cards.items() if weights and other.get("weights") == weights]
    told = f"{options.model} is being unloaded; requests that run are finished first."
    if others := ", ".join(name for name in sharing if name != options.model):
        told += f" With it goes what shares its weights: {others}."
    print(told)
    return 0
