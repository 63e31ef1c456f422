"""What of an answer is reasoning: the tokens, and the text, between `<think>` and `</think>`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from server.chat.reply import Part, Reasoning, ReplyParser
from server.chat.scanning import skip_space, tag_start

_OPENING, _CLOSING = "<think>", "</think>"


class ReasoningCounter:
    """Counts the reasoning tokens of one choice, the two markers included.

    As in its text, reasoning comes first or not at all: a marker within the answer opens nothing.
    """

    __slots__ = ("_close", "_open", "_pieces", "_possible", "count", "inside")

    def __init__(
        self, markers: Mapping[str, int], pieces: Sequence[bytes], prompt: Sequence[int] = ()
    ) -> None:
        """`markers`: the vocabulary's marker tokens; `pieces`: token id → text. A prompt may have opened the block."""
        self._pieces = pieces
        self._open = markers.get(_OPENING, -1)
        self._close = markers.get(_CLOSING, -1)
        self.count = 0
        self.inside = self._open >= 0 and self._left_open(prompt)
        self._possible = not self.inside
        """Whether neither reasoning nor answer has begun."""

    def add(self, tokens: Iterable[int]) -> None:
        """Take the tokens of a delta."""
        if self._open < 0:
            return
        for token in tokens:
            if self._possible:
                self.inside = token == self._open
                self._possible = not self.inside and not self._pieces[token].strip()
            self.count += self.inside
            if token == self._close:
                self.inside = False

    def _left_open(self, prompt: Sequence[int]) -> bool:
        if self._open not in prompt:
            return False
        last = next((t for t in reversed(prompt) if t in (self._open, self._close)), None)
        return last == self._open


class ReasoningSplitter:
    """Tells reasoning from the answer, which it gives to another parser.

    Reasoning comes first or not at all. Newlines at its ends and white space around it belong to
    neither. What is never closed is reasoning to its end.
    """

    def __init__(self, rest: ReplyParser, *, inside: bool) -> None:
        """`inside`: the prompt has opened the block already."""
        self._rest = rest
        self._inside = inside
        self._text = ""
        self._held: list[str] = []  # white space of which it is not known yet what it belongs to
        self._parts: list[Part] = []
        self._state: Callable[[], bool] = self._at_start

    def push(self, text: str) -> list[Part]:
        """Take more text; return what is certain by now."""
        if self._state == self._in_answer:
            return self._rest.push(text)
        self._text += text
        while self._text and self._state():
            pass
        return self._take()

    def close(self) -> list[Part]:
        """Return what was held back."""
        held = "".join(self._held) + self._text
        self._text = ""
        if self._state == self._in_reasoning or (self._state == self._at_start and self._inside):
            self._think(held)
        elif self._state == self._at_start:
            self._parts += self._rest.push(held)
        self._parts += self._rest.close()
        return self._take()

    def _at_start(self) -> bool:
        """Look for the opening tag, which may follow white space."""
        self._hold(skip_space(self._text, 0))
        if self._text.startswith(_OPENING):
            self._text = self._text[len(_OPENING) :]
            self._held = []
            self._inside = True
            self._state = self._before_reasoning
        elif _OPENING.startswith(self._text):
            return False
        elif self._inside:
            self._text = "".join(self._held).lstrip("\n") + self._text
            self._held = []
            self._state = self._in_reasoning
        else:
            self._text = "".join(self._held) + self._text
            self._state = self._in_answer
        return True

    def _before_reasoning(self) -> bool:
        self._text = self._text.lstrip("\n")
        self._state = self._in_reasoning if self._text else self._state
        return bool(self._text)

    def _in_reasoning(self) -> bool:
        end = self._text.find(_CLOSING)
        complete = end >= 0
        if not complete:
            end = tag_start(self._text, 0, (_CLOSING,))
        said = self._text[:end].rstrip("\n")
        if said:
            self._think("".join(self._held) + said)
            self._held = []
        self._text = self._text[len(said) :]
        self._hold(end - len(said))
        if complete:
            self._text = self._text[len(_CLOSING) :]
            self._held = []
            self._state = self._before_answer
        return complete

    def _before_answer(self) -> bool:
        self._text = self._text[skip_space(self._text, 0) :]
        self._state = self._in_answer if self._text else self._state
        return bool(self._text)

    def _in_answer(self) -> bool:
        text, self._text = self._text, ""
        self._parts += self._rest.push(text)
        return False

    def _hold(self, size: int) -> None:
        if size:
            self._held.append(self._text[:size])
            self._text = self._text[size:]

    def _think(self, text: str) -> None:
        if text:
            self._parts.append(Reasoning(text))

    def _take(self) -> list[Part]:
        taken, self._parts = self._parts, []
        return taken
