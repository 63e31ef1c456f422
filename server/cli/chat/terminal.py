"""The terminal: what is written where, in which colour, and how a line is read."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from server.core.errors import ConfigError

_DIMMED = ("\x1b[2m", "\x1b[0m")
_CLEAR_LINE = "\r\x1b[K"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MARK = '"""'
_BEGUN = re.compile(r'\s*(/(?:set\s+)?system\s+)?"""')
_HISTORY_LINES = 1000
_NOT_UTF8 = "The text is not UTF-8. Convert it: iconv -f latin1 -t utf-8, for example."


class Terminal:
    """Answers go to `out`; everything about them goes to `err`, unless a person watches both.

    NO_COLOR (no-color.org) leaves out colours, TERM=dumb also what moves the cursor.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """By default the process's own streams, and a terminal that can do all."""
        environment = environment or {}
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        for stream in (self._out, self._err):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # an answer in any script, a locale of one
        self.interactive = self._out.isatty()
        dumb = environment.get("TERM") == "dumb"
        self._moves = self._err.isatty() and not dumb
        self._dim, self._plain = ("", "") if dumb or environment.get("NO_COLOR") else _DIMMED
        self._status = ""
        self._dimmed = False
        self._open_line = False

    def answer(self, text: str) -> None:
        """Write text of the answer."""
        marked = self._dimmed and self.interactive and not self._dim
        self._undim()
        if marked:
            self._write(self._out, "(answer)\n")
        self._write(self._out, text)

    def thinking(self, text: str) -> None:
        """Write the model's reasoning: dimmed, or to `err` when the answer goes to a file."""
        text = text if self._dimmed else text.lstrip("\n")
        if not text:
            return
        self.clear_status()
        if not self._dimmed and self.interactive:
            self._out.write(self._dim or "(thinking)\n")
        self._dimmed = True
        self._write(self._out if self.interactive else self._err, text)

    def end_line(self) -> None:
        """End the line that is being written, if one is."""
        self._undim()
        if self._open_line:
            self._write(self._out, "\n")

    def say(self, text: str) -> None:
        """Write a line about the chat."""
        self.clear_status()
        if self.interactive:
            self.end_line()
        print(text, file=self._out if self.interactive else self._err, flush=True)

    def note(self, text: str) -> None:
        """Write a remark."""
        self.say(f"{self._dim}{_safe(text)}{self._plain}" if self.interactive else _safe(text))

    def problem(self, text: str) -> None:
        """Write an error."""
        self.clear_status()
        if self.interactive:
            self.end_line()
        print(_safe(text), file=self._err, flush=True)

    def status(self, text: str) -> None:
        """Show what goes on, on a line that the next output replaces."""
        if not self._moves or text == self._status or self._open_line:
            return
        self._status = text
        shown = _cut(_safe(text), self._width())
        self._err.write(f"{_CLEAR_LINE}{self._dim}{shown}{self._plain}")
        self._err.flush()

    def clear_status(self) -> None:
        """Take the status line away."""
        if self._status:
            self._status = ""
            self._err.write(_CLEAR_LINE)
            self._err.flush()

    def close(self) -> None:
        """Leave the terminal as it was found, however the chat ends."""
        self._undim()

    def _undim(self) -> None:
        self.clear_status()
        if not self._dimmed:
            return
        self._dimmed = False
        if not self.interactive:
            self._write(self._err, "\n")
            return
        self._out.write(self._plain)
        if self._open_line:
            self._write(self._out, "\n")

    def _write(self, stream: TextIO, text: str) -> None:
        if not text:
            return
        self.clear_status()
        # A model's text must not move the cursor or set the window's title.
        stream.write(_safe(text) if stream.isatty() else text)
        stream.flush()
        if stream is self._out:
            self._open_line = not text.endswith("\n")

    def _width(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            columns = os.get_terminal_size(self._err.fileno()).columns
            return columns - 1 if columns > 1 else 79
        return 79


def read_message(first: str = ">>> ", more: str = "... ") -> str:
    '''Read a line, or several between """ and """, which may be a system prompt.

    Raises `EOFError` at the end of the input, and `ConfigError` for what is not UTF-8.
    '''
    text = _line(first)
    begun = _BEGUN.match(text)
    if begun is None:
        return text
    text = text[begun.end() :]
    while not text.rstrip().endswith(_MARK):
        text += "\n" + _line(more)
    return (begun[1] or "") + text.rstrip()[: -len(_MARK)]


def _line(prompt: str) -> str:
    try:
        if sys.stdout.isatty() or not sys.stdin.isatty():
            return utf8(input(prompt))
        # Without a terminal to write on, `input` would write the prompt among the answers.
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise ConfigError(_NOT_UTF8) from error
    if not line:
        raise EOFError
    return utf8(line.rstrip("\n"))


def utf8(text: str) -> str:
    """Return text from the command line or a stream, put right where the locale misread its bytes.

    Raises `ConfigError` when they are not UTF-8: a server would refuse them, with no advice.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode()
        except UnicodeError as error:
            raise ConfigError(_NOT_UTF8) from error
    return text


@contextlib.contextmanager
def history(path: Path) -> Iterator[None]:
    """Edit lines as they are read, and keep them in `path`; a failure costs the history alone."""
    try:
        import readline
    except ImportError:  # some builds of Python have no line editing
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def _cut(text: str, columns: int) -> str:
    """Return as much of the beginning as fits; Chinese, for one, takes two columns a character."""
    used = 0
    for place, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > columns:
            return text[:place]
    return text


def _safe(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
