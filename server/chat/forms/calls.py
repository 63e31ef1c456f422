"""What parsers of calls have in common: the text up to a tag, and what may follow a call."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from server.chat.reply import Part
from server.chat.scanning import SPACE, Parts, skip_space, tag_start

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_REST = re.compile(f"[{SPACE}}}]*")


class CallParser(ABC):
    """A machine whose states take text from where the last one stopped; subclasses add those of a form.

    A state returns False when it needs more text, and then leaves less of it than a tag unread. What
    stands after an opening tag is kept until the call is opened, for it may turn out to be content.
    """

    def __init__(self, openings: Sequence[str]) -> None:
        """`openings`: tags that may begin a call."""
        self.text = ""
        self.at = 0
        self.parts = Parts()
        self.state: Callable[[], bool] = self.in_text
        self.calls = 0
        self.is_open = False
        self._openings = openings
        self._opening = re.compile("|".join(map(re.escape, openings)))
        self._space: list[str] = []  # content, unless a call follows
        self._tried: list[str] = []  # content, unless it becomes a call

    def push(self, text: str) -> list[Part]:
        """Take more text; return what is certain by now."""
        self.text = self.text[self.at :] + text
        self.at = 0
        while self.at < len(self.text) and self.state():
            pass
        return self.parts.take()

    def close(self) -> list[Part]:
        """Return what was held back. A call that is open stays unfinished."""
        if self.is_open:
            self.cut_off()
        else:
            if self.state == self._after:
                self._without_closing_tag()
            self.say("".join(self._tried) + self.text[self.at :])
        self.parts.content("".join(self._space))
        self._tried, self._space = [], []
        self.text, self.at = "", 0
        return self.parts.take()

    def in_text(self) -> bool:
        """Look for the tag that begins a call."""
        found = self._opening.search(self.text, self.at)
        if found is None:
            end = tag_start(self.text, self.at, self._openings)
            self.say(self.text[self.at : end])
            self.at = end
            return False
        self.say(self.text[self.at : found.start()])
        self.at = found.start()
        self.consume(found.end())
        self.state = self.begin(found[0])
        return True

    @abstractmethod
    def begin(self, tag: str) -> Callable[[], bool]:
        """Return the state after an opening tag."""

    @abstractmethod
    def cut_off(self) -> None:
        """The text has ended within an open call: write what was held back of its arguments."""

    def consume(self, end: int) -> str:
        """Take the text up to `end`, and keep it while no call is open."""
        piece = self.text[self.at : end]
        self.at = end
        if not self.is_open:
            self._tried.append(piece)
        return piece

    def next(self) -> str:
        """Skip white space; return the character that follows, without taking it, or nothing."""
        self.consume(skip_space(self.text, self.at))
        return self.text[self.at : self.at + 1]

    def ahead(self, *tags: str) -> str | None:
        """Skip white space; return which of `tags` follows, without taking it: "" if it may be one, else None."""
        self.next()
        for tag in tags:
            if self.text.startswith(tag, self.at):
                return tag
        rest = self.text[self.at : self.at + max(map(len, tags))]
        return "" if any(tag.startswith(rest) for tag in tags) else None

    def open(self, name: str) -> None:
        """It is a call."""
        self._tried, self._space = [], []
        self.parts.opened(self.calls, name)
        self.is_open = True

    def write(self, text: str) -> None:
        """Add to the open call's arguments."""
        self.parts.arguments(self.calls, text)

    def done(self) -> bool:
        """The open call is complete, or broken off by something else."""
        self.is_open = False
        self.calls += 1
        self.state = self._after
        return True

    def fail(self) -> bool:
        """What stands here does not belong to a call: it is text, and so is an attempt that is not open."""
        if self.is_open:
            return self.done()
        tried = "".join(self._tried)
        self._tried = []
        self.say(tried)
        self.state = self.in_text
        return True

    def say(self, text: str) -> None:
        """Write content; hold back white space that may precede a call."""
        body = text.rstrip(SPACE)
        if body:
            self.parts.content("".join(self._space) + body)
            self._space = []
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def _after(self) -> bool:
        """Drop the closing tag, and one brace too many before it, as some models write."""
        rest = _REST.match(self.text, self.at)
        if rest is not None and rest[0]:
            self._space.append(rest[0])
            self.at = rest.end()
            return True
        if self.text.startswith(CLOSING, self.at):
            self.at += len(CLOSING)
            self._space = []
            self.state = self._between
            return True
        if CLOSING.startswith(self.text[self.at : self.at + len(CLOSING)]):
            return False
        self._without_closing_tag()
        self.state = self.in_text
        return True

    def _without_closing_tag(self) -> None:
        """Hand out as text what looked like braces too many."""
        held = "".join(self._space).lstrip(SPACE)
        self._space = []
        self.say(held)

    def _between(self) -> bool:
        """White space that follows a call is not content."""
        self.at = skip_space(self.text, self.at)
        if self.at == len(self.text):
            return False
        self.state = self.in_text
        return True
