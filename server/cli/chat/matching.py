"""Which of a running server's names means what somebody asks for: a name, a GGUF or a Modelfile.

Loading twenty gigabytes a second time beside themselves is what this prevents.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from server.catalog.modelfile import served_name
from server.cli.chat.client import Client, ServerError

Card = Mapping[str, Any]


def served_as(client: Client, cards: Sequence[Card], asked: str) -> str | None:
    """Return the name of the server's model that `asked` means; None when it has none."""
    if any(card["id"] == asked for card in cards):
        return asked
    path = Path(asked)
    if not path.is_file():
        return None
    if (name := served_name(path)) is not None:
        return next((name for card in cards if card["id"] == name and _made_by(card, path)), None)
    return next((str(card["id"]) for card in cards if _holds(client, card, path)), None)


def _made_by(card: Card, path: Path) -> bool:
    """Tell whether the card's Modelfile is the one at `path`, by what its description names.

    The server's own relative paths cannot be followed from here; then their ends must agree.
    """
    kind, _, rest = str(card.get("description") or "").partition(" ")
    origin = PurePath(rest.partition(", FROM ")[0])
    if kind != "Modelfile":
        return False
    whole = path.resolve()
    if origin.is_absolute():
        return Path(origin).resolve() == whole
    parts = [part for part in origin.parts if part != ".."]
    return list(whole.parts[-len(parts) :]) == parts


def _holds(client: Client, card: Card, path: Path) -> bool:
    """Tell whether a plain model, not an agent, has the file at `path` as its weights."""
    if card.get("description"):
        return False
    try:
        props = client.get(f"/props?model={urllib.parse.quote(card['id'], safe='')}")
    except ServerError as error:
        # Of what is not loaded only the name is known, which is the file's.
        return error.code == "model_loading" and card["id"] == path.stem
    try:
        return path.samefile(props["model_path"])
    except (OSError, KeyError, TypeError):
        return False
