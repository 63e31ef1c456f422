"""`onegpu run`: a chat in the terminal, with a running server or one of its own."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from server.core.errors import ConfigError, OnegpuError

if TYPE_CHECKING:
    from server.cli.chat.client import Client
    from server.cli.chat.terminal import Terminal
    from server.cli.parsing import Commands

_DESCRIPTION = """\
Chat with MODEL: a GGUF file, a catalogue name, hf:owner/repo, a Modelfile, or a name that a
running server has. With a TEXT, or text on standard input, answer that and end.

A server at http://127.0.0.1:8000 that has MODEL is used; otherwise one is started for this chat
and ended with it."""
_EPILOG = """\
examples:
  onegpu run models/demo.gguf                   a chat; /help lists its commands
  onegpu run qwen3:8b "Why is the sky blue?"    one answer
  onegpu run qwen3:8b "Summarise:" < paper.txt  the text, a blank line, and the file
  ONEGPU_KEY=KEY onegpu run --url http://gpu-box:8000

Exit status: 0 done, 1 no answer or not all of it, 2 wrong usage or configuration, 130 interrupted."""
# Handed to `onegpu serve` as they are.
_SERVE_FLAGS = {
    "--n-ctx": ("TOKENS", "most tokens of the whole chat"),
    "--n-gpu-layers": ("N", "layers on the GPU: a number, all, or auto"),
    "--kv-type": ("TYPE", "f16, q8_0, q4_0"),
    "--draft": ("MODEL", "a small model of this family, which foresees tokens"),
    "--config": ("FILE", "a YAML file with settings"),
}


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    from server.cli.server_flags import add_server_flags

    parser = commands.add_parser(
        "run",
        prog="onegpu run",
        help="chat with a model in the terminal",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="what to talk to [what the running server has]"
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help="a message to answer [a chat]")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt [the model's own]")
    there = parser.add_argument_group("a server that is there")
    add_server_flags(there)
    own = parser.add_argument_group("a server of its own")
    for flag, (metavar, text) in _SERVE_FLAGS.items():
        own.add_argument(flag, metavar=metavar, help=f"{text} [as onegpu serve]")


def run(options: argparse.Namespace) -> int:
    """Chat, or answer once. Raises `ConfigError` and `OnegpuError`."""
    from server.cli.chat.conversation import Conversation
    from server.cli.chat.repl import Repl
    from server.cli.chat.signals import prompt_signals
    from server.cli.chat.terminal import Terminal, history, utf8
    from server.cli.output import output
    from server.cli.server_flags import key_of
    from server.settings.environment import read_environment

    terminal = Terminal(environment=read_environment())
    key = key_of(options)
    question = _question(options.text)
    system = None if options.system is None else utf8(options.system)
    with (
        output(),
        prompt_signals(),
        contextlib.closing(terminal),
        _connected(options, key, terminal) as (client, model, ended),
    ):
        chat = Repl(client, Conversation(model, system), terminal, ended=ended)
        if question is not None:
            return chat.ask(question)
        terminal.note(f"{model} at {client.url}. /help lists the commands, /bye leaves.")
        with history(Path.home() / ".local" / "state" / "onegpu" / "history"):
            chat.run()
    return 0


def _question(words: list[str]) -> str | None:
    """Return what is to be answered once; None when a person sits at the terminal."""
    from server.cli.chat.terminal import utf8

    given = utf8(" ".join(words))
    if sys.stdin is not None and sys.stdin.isatty():
        return given or None
    try:
        piped = "" if sys.stdin is None else utf8(sys.stdin.read())
    except UnicodeDecodeError as error:
        raise ConfigError("Standard input is not text in UTF-8.") from error
    text = "\n\n".join(part for part in (given, piped.rstrip("\n")) if part.strip())
    if not text:
        raise ConfigError("There is nothing to answer: standard input is empty.")
    return text


@contextlib.contextmanager
def _connected(
    options: argparse.Namespace, key: str | None, terminal: Terminal
) -> Iterator[tuple[Client, str, Callable[[], str | None]]]:
    """Find a server or start one; give its client, the model's name there, and why it ended."""
    from server.cli.chat.client import Client
    from server.cli.chat.owned import OwnServer
    from server.cli.chat.url import DEFAULT_URL

    client = Client(options.url or DEFAULT_URL, key)
    name = _name_there(client, options, required=options.url is not None)
    if name is not None:
        terminal.status(f"asking {client.url}")
        _await_loaded(client, name, terminal)
        terminal.clear_status()
        yield client, name, lambda: None
        return
    arguments = [] if options.model is None else [options.model]
    arguments += [] if options.config else ["--slots", "1"]
    for flag in _SERVE_FLAGS:
        value = _value(options, flag)
        arguments += [] if value is None else [flag, value]

    def progress(doing: str) -> None:
        terminal.status(f"starting {options.model or 'the model'}{doing and ': '}{doing}")

    with OwnServer(arguments, progress, terminal.note) as server:
        terminal.clear_status()
        own = Client(server.url, key)
        names = [card["id"] for card in own.models()]
        name = options.model if options.model in names else names[0]
        _await_loaded(own, name, terminal)
        terminal.clear_status()
        yield own, name, server.ended


def _name_there(client: Client, options: argparse.Namespace, *, required: bool) -> str | None:
    """Name under which a running server has the model, None when it is to be served here.

    Raises `ConfigError` or `ServerError` when the server was asked for by its URL, and `ConfigError`
    when the server that is there has the model, and flags are given for one that is started.
    """
    from server.cli.chat.client import ServerError
    from server.cli.chat.matching import served_as

    try:
        cards = client.models()
    except ServerError as error:
        if required or error.status in (401, 403):
            raise
        return None
    name = str(cards[0]["id"]) if cards else None
    if options.model is not None:
        name = served_as(client, cards, options.model)
    flags = [flag for flag in _SERVE_FLAGS if _value(options, flag) is not None]
    if flags and (name is not None or required):
        raise ConfigError(
            f"{' and '.join(flags)} would be for a server that is started for this chat, but the one at "
            f"{client.url} is there already. Leave {'it' if len(flags) == 1 else 'them'} out, or stop that server."
        )
    if name is None and required:
        names = ", ".join(card["id"] for card in cards) or "nothing"
        raise ConfigError(f"{client.url} has no model {options.model}. It has {names}.")
    return name


def _value(options: argparse.Namespace, flag: str) -> str | None:
    value: str | None = getattr(options, flag.removeprefix("--").replace("-", "_"))
    return value


def _await_loaded(client: Client, name: str, terminal: Terminal) -> None:
    """Have the model loaded and show how far it is. Raises `OnegpuError` when that fails."""
    import time

    from server.cli.chat.client import ServerError

    asked = False
    while True:
        card = next((card for card in client.models() if card["id"] == name), {})
        state = card.get("state", "ready")
        if state == "ready":
            return
        if state == "failed":
            raise OnegpuError(f"{name} could not be loaded: {card.get('error') or 'see the log'}.")
        if state == "unloaded" and not asked:
            asked = True
            try:
                client.post("/models/load", {"model": name})
            except ServerError as error:
                if error.status in (404, 405):
                    return  # the first request loads it
                raise
            continue
        share = card.get("load_progress")
        shown = f": {share:.0%}" if isinstance(share, int | float) else ""
        terminal.status(f"{state} {name}{shown}")
        time.sleep(0.25)
