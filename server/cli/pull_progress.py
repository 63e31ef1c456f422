"""How a download looks: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
from collections import deque
from typing import TextIO

from server.catalog.download_choice import size_text
from server.core.clock import Clock, SystemClock

_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 30.0
_STEP_SECONDS = 2.0
_LINE_SHARE = 0.1
_SPEED_SECONDS = 10.0
_LEAST_LABEL = 12


class Speed:
    """Bytes per second over the last ten seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """`done` bytes are there at `now`."""
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _SPEED_SECONDS:
            self._samples.popleft()

    def value(self) -> float | None:
        """Return bytes per second; None until there is something to divide."""
        if len(self._samples) < 2:
            return None
        (begin, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - begin) if end > begin and last > first else None


class StreamProgress:
    """A `Progress` that writes to a stream."""

    def __init__(
        self, stream: TextIO, *, terminal: bool | None = None, clock: Clock | None = None
    ) -> None:
        """`terminal` None asks the stream."""
        self._stream = stream
        self._terminal = stream.isatty() if terminal is None else terminal
        self._clock = clock or SystemClock()
        self._label = ""
        self._total = 0
        self._done = 0
        self._begun_at = 0
        self._begun = 0.0
        self._shown = 0.0
        self._shown_done = 0
        self._speed = Speed()

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._write(text)

    def begin(self, label: str, *, total: int, done: int) -> None:
        """Begin a phase; tell what is there already."""
        self._label, self._total, self._done = label, total, done
        self._begun, self._begun_at = self._clock.monotonic(), done
        self._shown, self._shown_done = self._begun, done
        self._speed = Speed()
        self._speed.add(self._begun, done)
        there = f", {size_text(done)} of it there" if done else ""
        self._write(f"{label}: {size_text(total)}{there}")

    def advance(self, count: int) -> None:
        """Count, and show it when it is time."""
        self._done += count
        now = self._clock.monotonic()
        self._speed.add(now, self._done)
        if self._terminal:
            due = now - self._shown >= _REDRAW_SECONDS
        else:
            step = self._done - self._shown_done >= _LINE_SHARE * self._total
            due = now - self._shown >= (_STEP_SECONDS if step else _LINE_SECONDS)
        if due:
            self._shown, self._shown_done = now, self._done
            self._show()

    def end(self) -> None:
        """Write the phase's last state and what it took."""
        seconds = self._clock.monotonic() - self._begun
        came = self._done - self._begun_at
        rate = f", {size_text(round(came / seconds))}/s" if seconds > 0 and came > 0 else ""
        self._write(f"{self._label}: {self._state()} in {duration(seconds)}{rate}")

    def _show(self) -> None:
        speed = self._speed.value()
        text = f"  {self._state()}"
        if speed:
            left = (self._total - self._done) / speed
            text += f"  {size_text(round(speed))}/s  {duration(left)} left"
        if not self._terminal:
            self._write(self._label + text)
            return
        width = shutil.get_terminal_size().columns - 1
        line = shortened(self._label, max(width - len(text), _LEAST_LABEL)) + text
        self._stream.write(f"\r{line[:width]}\x1b[K")
        self._stream.flush()

    def _state(self) -> str:
        share = 100 * self._done // self._total if self._total else 100
        return f"{share:3d} %  {size_text(self._done)} of {size_text(self._total)}"

    def _write(self, text: str) -> None:
        clear = "\r\x1b[K" if self._terminal else ""
        self._stream.write(f"{clear}{text}\n")
        self._stream.flush()


def shortened(text: str, width: int) -> str:
    """Leave out the middle of a text that is longer than `width`: a file's name tells most at its ends."""
    if len(text) <= width:
        return text
    head = (width - 3) // 2
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def duration(seconds: float) -> str:
    """Write a duration for people: 3 min 29 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole} s"
