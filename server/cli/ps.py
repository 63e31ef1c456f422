"""`onegpu ps`: what a running server has loaded."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.cli.parsing import Commands

_DESCRIPTION = """\
List the models of a running server: state, size of the weights, context of one request, requests
that run and slots for them, and until when an idle model stays loaded."""
_HEAD = ("NAME", "STATE", "SIZE", "CONTEXT", "RUNNING", "UNTIL")


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "ps", prog="onegpu ps", help="list a running server's models", description=_DESCRIPTION
    )
    parser.set_defaults(run=run, parser=parser)
    add_server_flags(parser)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add what says which server is meant."""
    parser.add_argument("--url", metavar="URL", help="where it listens [http://127.0.0.1:8000]")
    parser.add_argument("--key", metavar="KEY", help="the key that it asks for [none]")


def run(options: argparse.Namespace) -> int:
    """Print the table. Raises `ServerError` when no server answers."""
    from server.cli.chat.client import DEFAULT_URL, Client, ServerError

    client = Client(options.url or DEFAULT_URL, options.key)
    cards = client.models()
    try:
        slots = client.get("/slots")
    except ServerError as error:
        if error.status < 500 and error.status != 404:
            raise
        slots = []  # nothing is loaded yet
    rows = [_HEAD, *(_row(card, _slots_of(card, cards, slots), time.time()) for card in cards)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("   ".join(cells).rstrip())
    return 0


def _slots_of(
    card: Mapping[str, Any], cards: Sequence[Mapping[str, Any]], slots: Any
) -> list[Mapping[str, Any]]:
    """Return the slots that are the model's; all of them where slots name no model."""
    known: list[Mapping[str, Any]] = []
    if isinstance(slots, list):
        known = [slot for slot in slots if isinstance(slot, dict)]
    if any("model" in slot for slot in known):
        return [slot for slot in known if slot.get("model") == card["id"]]
    # Names of one and the same model share its slots.
    one = len({str((each.get("meta") or {}).get("description")) for each in cards}) == 1
    return known if one else []


def _row(
    card: Mapping[str, Any], slots: Sequence[Mapping[str, Any]], now: float
) -> tuple[str, ...]:
    state = str(card.get("state") or ("ready" if card.get("meta") else "loading"))
    progress = card.get("load_progress")
    if state == "loading" and isinstance(progress, int | float):
        state = f"loading {progress:.0%}"
    size = (card.get("meta") or {}).get("size")
    context = card.get("context_window")
    running = sum(bool(slot.get("is_processing")) for slot in slots)
    return (
        str(card["id"]),
        state,
        f"{size / 1e9:.1f} GB" if isinstance(size, int) and size >= 1e8 else _megabytes(size),
        str(context) if context else "-",
        f"{running}/{len(slots)}" if slots else "-",
        _until(state, card.get("expires_at"), now),
    )


def _megabytes(size: Any) -> str:
    return f"{size / 1e6:.1f} MB" if isinstance(size, int) else "-"


def _until(state: str, expires_at: Any, now: float) -> str:
    """Say when an idle model goes; a card without a time stays loaded."""
    if state != "ready":
        return "-"
    if not isinstance(expires_at, int | float):
        return "stays"
    left = max(0, round(expires_at - now))
    clock = time.strftime("%H:%M:%S", time.localtime(expires_at))
    if left < 120:
        return f"{clock} (in {left} s)"
    return f"{clock} (in {left // 60} min)" if left < 7200 else f"{clock} (in {left // 3600} h)"
