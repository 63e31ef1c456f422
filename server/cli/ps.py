"""`onegpu ps`: what a running server has loaded."""

from __future__ import annotations

import argparse
import time
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.cli.chat.client import Client
    from server.cli.parsing import Commands

_DESCRIPTION = """\
List the models of a running server: state, the memory that weights and KV cache take (a draft
model's, too), tokens of one request, requests that run of those that can, and until when an idle
model stays loaded.
Names that share weights share that memory and those slots; in parentheses stands what an
unloaded model would take."""
_HEAD = ("NAME", "STATE", "MEMORY", "CONTEXT", "RUNNING", "UNTIL")


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    from server.cli.server_flags import add_server_flags

    parser = commands.add_parser(
        "ps", prog="onegpu ps", help="list a running server's models", description=_DESCRIPTION
    )
    parser.set_defaults(run=run, parser=parser)
    add_server_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table. Raises `ServerError` when no server answers."""
    from server.cli.chat.client import Client
    from server.cli.chat.url import DEFAULT_URL
    from server.cli.output import output
    from server.cli.server_flags import key_of

    client = Client(options.url or DEFAULT_URL, key_of(options))
    cards = client.models()
    running: dict[str, int | None] = {}
    for card in cards:
        weights = _weights(card)
        if weights not in running and _state(card) == "ready":
            running[weights] = _running(client, card["id"])
    rows = [_HEAD, *(_row(card, running.get(_weights(card), 0), time.time()) for card in cards)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    with output():
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("   ".join(cells).rstrip())
    return 0


def _weights(card: Mapping[str, Any]) -> str:
    """What names that share weights have in common."""
    return str(card.get("weights") or card["id"])


def _state(card: Mapping[str, Any]) -> str:
    return str(card.get("state") or "ready")


def _running(client: Client, name: str) -> int | None:
    """Requests that run on a model; 0 when it was unloaded meanwhile, None if the key may not see."""
    from server.cli.chat.client import ServerError

    try:
        slots = client.get(f"/slots?model={urllib.parse.quote(name, safe='')}")
    except ServerError as error:
        if error.status == 401:
            raise
        return None if error.status == 403 else 0
    views = slots if isinstance(slots, list) else []
    return sum(isinstance(view, dict) and bool(view.get("is_processing")) for view in views)


def _row(card: Mapping[str, Any], running: int | None, now: float) -> tuple[str, ...]:
    state = _state(card)
    progress = card.get("load_progress")
    shown = state
    if state == "loading" and isinstance(progress, int | float):
        shown = f"loading {progress:.0%}"
    slots = card.get("slots")
    return (
        str(card["id"]),
        shown,
        _memory(card),
        str(card.get("context_window") or "-"),
        f"{'?' if running is None else running}/{slots}" if state == "ready" and slots else "-",
        _until(state, card.get("expires_at"), now),
    )


def _memory(card: Mapping[str, Any]) -> str:
    """Say what the model takes, or will take, where; of a foreign server, the size of its weights."""
    memory = card.get("memory")
    if isinstance(memory, dict):
        parts = [(place.upper(), memory.get(place)) for place in ("gpu", "cpu")]
        told = [f"{_size(size)} {place}" for place, size in parts if isinstance(size, int) and size]
        shown = " + ".join(told) or "-"
        return f"({shown})" if told and _state(card) in ("unloaded", "failed") else shown
    size = (card.get("meta") or {}).get("size")
    return _size(size) if isinstance(size, int) else "-"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _until(state: str, expires_at: Any, now: float) -> str:
    """Say when an idle model goes; one without a time stays, or works."""
    if state != "ready":
        return "-"
    if not isinstance(expires_at, int | float):
        return "stays"
    left = max(0, round(expires_at - now))
    clock = time.strftime("%H:%M:%S", time.localtime(expires_at))
    if left < 120:
        return f"{clock} (in {left} s)"
    return f"{clock} (in {left // 60} min)" if left < 7200 else f"{clock} (in {left // 3600} h)"
