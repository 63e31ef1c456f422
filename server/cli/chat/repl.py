"""The chat's loop: read a message or a command, show the answer as it comes."""

from __future__ import annotations

import contextlib
import difflib
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from server.cli.chat.client import Client, Piece, ServerError
from server.cli.chat.conversation import SETTINGS, Conversation
from server.cli.chat.terminal import Terminal, read_message
from server.cli.chat.thinking import ThinkingSplitter
from server.core.errors import ConfigError

_LONGEST_PAUSE = 5.0
"""Seconds after which a model that is being loaded is asked for again at the latest."""
_HELP = """\
/help                 this list
/clear                forget the chat; the system prompt and the settings stay
/system [TEXT]        show or replace the system prompt ("" removes it)
/set [NAME VALUE]     show or change a setting; VALUE default takes it back
/show                 what is known of the model, and this chat's settings
/save FILE            write the chat to a file
/load FILE            go on with a chat from a file
/bye                  leave (Ctrl-D too)

Text between \"\"\" and \"\"\" may have several lines. Ctrl-C ends an answer, not the program.
Settings: """


class Repl:
    """One chat with a person."""

    def __init__(
        self,
        client: Client,
        conversation: Conversation,
        terminal: Terminal,
        *,
        ended: Callable[[], str | None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`ended` says why the server is gone, where that is known."""
        self._client = client
        self._chat = conversation
        self._terminal = terminal
        self._ended = ended
        self._sleep = sleep
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "clear": self._clear,
            "system": self._system,
            "set": self._set,
            "show": self._show,
            "save": self._save,
            "load": self._load,
        }

    def run(self) -> None:
        """Talk until `/bye` or the end of the input."""
        while True:
            try:
                text = read_message()
            except EOFError:
                self._terminal.say("")
                return
            except KeyboardInterrupt:
                self._terminal.say("")
                self._terminal.note("/bye or Ctrl-D leaves.")
                continue
            except ConfigError as error:
                self._terminal.problem(error.message)
                continue
            if text.strip() in ("/bye", "/exit", "/quit"):
                return
            if text.startswith("/"):
                self._command(text)
            elif text.strip():
                self.ask(text)

    def ask(self, text: str) -> int:
        """Send a message and show the answer.

        Returns an exit status: 0, 1 when there was no answer or not all of it, 130 interrupted.
        """
        self._chat.messages.append({"role": "user", "content": text})
        answer = Answer(self._terminal)
        status = 0
        try:
            with contextlib.closing(self._pieces()) as pieces:
                for piece in pieces:
                    answer.take(piece)
        except ServerError as error:
            status = 1
            answer.finish()
            gone = self._ended() if error.status == 0 else None
            self._terminal.problem(gone or error.message + _advice(error))
        except KeyboardInterrupt:
            status = 130
            answer.finish()
            self._terminal.note("(interrupted)")
        else:
            answer.finish()
        message = answer.message()
        if message is None:
            # A question without an answer would stand twice in the chat when it is asked again.
            self._chat.messages.pop()
        else:
            self._chat.messages.append(message)
        return status

    def _pieces(self) -> Generator[Piece]:
        """Ask, and ask again while the model is being loaded: Ctrl-C ends the waiting."""
        begun = False
        while True:
            try:
                with contextlib.closing(self._client.chat(self._chat.request())) as pieces:
                    for piece in pieces:
                        begun = begun or not piece.status
                        yield piece
            except ServerError as error:
                if error.code != "model_loading" or begun:
                    raise
                self._terminal.status(error.message)
                self._sleep(min(error.retry_after, _LONGEST_PAUSE))
            else:
                return

    def _command(self, text: str) -> None:
        name, _, rest = text[1:].strip().partition(" ")
        command = self._commands.get(name.lower())
        if command is None:
            names = [*self._commands, "bye"]
            near = difflib.get_close_matches(name.lower(), names, n=1)
            hint = f"; did you mean /{near[0]}?" if near else ". /help lists them"
            self._terminal.problem(
                f"There is no command /{name}{hint} (a message that begins with / needs a blank before it)"
            )
            return
        try:
            command(rest.strip())
        except ConfigError as error:
            self._terminal.problem(error.message)

    def _help(self, _: str) -> None:
        self._terminal.say(_HELP + ", ".join(SETTINGS))

    def _clear(self, _: str) -> None:
        count = len(self._chat.messages)
        self._chat.messages.clear()
        self._terminal.note(f"Forgot {count} messages.")

    def _system(self, text: str) -> None:
        if not text:
            shown = self._chat.system
            self._terminal.note("No system prompt of this chat's own." if shown is None else shown)
            return
        self._chat.system = _unquoted(text) or None
        self._terminal.note("Set the system prompt; it holds from the next message on.")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name.lower() == "parameter":  # Ollama's word before a name
            name, _, value = value.strip().partition(" ")
        if name.lower() == "system":
            self._system(value.strip())
            return
        if not name:
            self._terminal.note(self._settings())
            return
        if not value.strip():
            raise ConfigError(f"/set {name} needs a value, or default.")
        name = self._chat.set(name, _unquoted(value.strip()))
        self._terminal.note(f"{name}: {self._chat.settings.get(name, 'the default')}")

    def _settings(self) -> str:
        settings = self._chat.settings
        listed = ", ".join(f"{name} {value}" for name, value in settings.items())
        return f"Set: {listed or 'nothing; the defaults of the model hold'}"

    def _show(self, _: str) -> None:
        try:
            cards = {card["id"]: card for card in self._client.models()}
        except ServerError as error:
            self._terminal.problem(error.message)
            return
        card = cards.get(self._chat.model, {})
        facts = {**card, **(card.get("meta") or {})}
        left_out = ("object", "meta", "created")
        for name, value in facts.items():
            if name not in left_out and value is not None:
                shown = value if isinstance(value, str) else json.dumps(value)
                self._terminal.note(f"{name:<16} {shown}")
        self._terminal.note(f"{'server':<16} {self._client.url}")
        self._terminal.note(f"{'messages':<16} {len(self._chat.messages)}")
        if self._chat.system is not None:
            self._terminal.note(f"{'system':<16} {self._chat.system}")
        self._terminal.note(self._settings())

    def _save(self, text: str) -> None:
        path = _path(text, "/save")
        self._chat.save(path)
        self._terminal.note(f"Saved {len(self._chat.messages)} messages to {path}.")

    def _load(self, text: str) -> None:
        path = _path(text, "/load")
        self._chat.load(path)
        self._terminal.note(f"Loaded {len(self._chat.messages)} messages from {path}.")


class Answer:
    """Collects one answer and shows it as it comes."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._splitter = ThinkingSplitter()
        self._text: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._dropped = 0
        self._end = ""

    def take(self, piece: Piece) -> None:
        """Show what a chunk brings."""
        if piece.status:
            self._terminal.status(piece.status)
        if piece.reasoning:
            self._terminal.thinking(piece.reasoning)
        if piece.content:
            self._text.append(piece.content)
            self._show(self._splitter.push(piece.content))
        for delta in piece.calls:
            self._call(delta)
        self._dropped = max(self._dropped, piece.dropped_turns)
        self._end = piece.finish or self._end

    def finish(self) -> None:
        """Show what was held back, and what there is to say about the answer."""
        self._show(self._splitter.finish())
        self._terminal.end_line()
        for call in self._calls.values():
            function = call["function"]
            self._terminal.note(f"(calls {function['name']}({function['arguments']}))")
        if self._end == "length":
            self._terminal.note("(cut off: max_tokens or the end of the context)")
        if self._dropped:
            turns = "turn was" if self._dropped == 1 else f"{self._dropped} turns were"
            self._terminal.note(f"(the oldest {turns} left out to fit the context)")

    def message(self) -> dict[str, Any] | None:
        """Return the answer as a message of the chat, None when there is none.

        Tool calls are shown, but not kept: nobody here could answer them.
        """
        text = "".join(self._text)
        return {"role": "assistant", "content": text} if text or self._calls else None

    def _show(self, parts: list[tuple[Any, str]]) -> None:
        for kind, text in parts:
            if kind == "thinking":
                self._terminal.thinking(text)
            else:
                self._terminal.answer(text)

    def _call(self, delta: Any) -> None:
        call = self._calls.setdefault(
            delta.get("index", 0), {"function": {"name": "", "arguments": ""}}
        )
        function = delta.get("function") or {}
        for key in ("name", "arguments"):
            call["function"][key] += function.get(key) or ""


def _advice(error: ServerError) -> str:
    if error.code == "context_length_exceeded":
        return " (/clear forgets the chat.)"
    return ""


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    return text[1:-1] if quoted else text


def _path(text: str, command: str) -> Path:
    if not text:
        raise ConfigError(f"{command} needs the name of a file.")
    return Path(text).expanduser()
