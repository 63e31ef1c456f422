"""Server-sent events, read line by line (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """The data of one event, its lines joined."""

    data: str


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that begins with a colon, which this server uses to tell the place in the line."""

    text: str


def events(lines: Iterable[bytes]) -> Iterator[Event | Comment]:
    """Yield what `lines`, ends included, hold. An event without its closing blank line is none."""
    data: list[str] = []
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if data:
                yield Event("\n".join(data))
            data = []
        elif line.startswith(":"):
            yield Comment(line[1:].strip())
        else:
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
