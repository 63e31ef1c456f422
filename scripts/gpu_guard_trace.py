"""Draws how the VRAM guard answers a card that others fill and leave, as an SVG picture.

.venv/bin/python scripts/gpu_guard_trace.py trace.svg [--mode reserve] [--card 8] [--cycles 10]

The guard, the line and the host are the server's own; the card, the clock and the engine are played.
Other programs take the card from 80 to 97 % and give it back, with noise, over and over, while
requests come in. Prints what happened.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from server.core.errors import Unavailable
from server.gateway.fair_queue import Rank
from server.gateway.gpu_guard import CardGuard, GuardLimits, GuardState, Sample
from server.gateway.gpu_shedding import GpuGuard, WatchedCard
from server.gateway.host import Host, HostSpec, HostState
from server.gateway.line import Line, LineLimits
from server.gateway.memory import Footprint
from server.gateway.ticket import Ticket

_GIB = 1 << 30
_BUS = "0000:3b:00.0"
_SLOTS, _QUEUE = 4, 16
_EVERY, _SECONDS = 5, 15
"""A request comes every so many seconds and takes so many."""


@dataclass
class Played:
    """A clock that is set by hand."""

    now: float = 0.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def wall(self) -> float:
        """Return the time."""
        return self.now


@dataclass(frozen=True)
class Moment:
    """One second of the trace."""

    used: float
    """Percent of the card."""
    low: float
    high: float
    """The thresholds, as percent in use."""
    state: GuardState
    running: int
    waiting: int
    refused: int
    """So far."""
    finished: int
    cut: int
    """Requests that ran and did not end by themselves. There are none."""


@dataclass
class _Run:
    ticket: Ticket
    left: int = _SECONDS


@dataclass
class Stage:
    """One card, one model on it, and those who ask it."""

    limits: GuardLimits
    total: int
    clock: Played = field(default_factory=Played)
    begun: list[_Run] = field(default_factory=list)
    """Of these, the first `_SLOTS` that were begun run."""
    counted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Make the server's parts."""
        self.line = Line(LineLimits(_QUEUE), self.clock)
        spec = HostSpec(
            "model", _SLOTS, 4096, 4 * 4096, Footprint(self.total * 8 // 10), _no_engine
        )
        self.host = Host(spec, self.line.open_lane(_SLOTS), 0.0)
        self.host.state = HostState.READY
        self.guard = CardGuard(self.limits, 0.0)
        card = WatchedCard(_BUS, f"card {_BUS}", self.guard, (self.host,))
        self.guards = GpuGuard((card,), self.clock, lambda: None)
        self.running: list[_Run] = []

    def second(self, percent: float) -> Moment:
        """Pass one second with so much of the card in use."""
        self.clock.now += 1
        free = round(self.total * (1 - percent / 100))
        self.guards.observe({_BUS: Sample(self.clock.now, self.total, free)})
        if self.clock.now % _EVERY == 0:
            self._ask()
        self._work()
        return Moment(
            used=percent,
            low=100 - 100 * self.guard.low / self.total,
            high=100 - 100 * self.guard.high / self.total,
            state=self.guard.state,
            running=len(self.running),
            waiting=self.line.outstanding - len(self.running),
            refused=self.counted["refused"],
            finished=self.counted["finished"],
            cut=self.counted["started"] - self.counted["finished"] - len(self.running),
        )

    def _ask(self) -> None:
        try:
            ticket = self.host.lane.admit()
        except Unavailable:
            self.counted["refused"] += 1
            return
        run = _Run(ticket)

        def begin(_index: int, _rank: Rank) -> None:
            self.begun.append(run)

        ticket.price([100.0], begin)

    def _work(self) -> None:
        """Do what an engine does: slots for who waits unless it is held, and one second of work."""
        for run in list(self.running):
            run.left -= 1
            if not run.left:
                self.running.remove(run)
                self.counted["finished"] += 1
                run.ticket.note_ended(0)
                run.ticket.release()
        while self.begun and len(self.running) < _SLOTS and self.host.lane.held is None:
            run = self.begun.pop(0)
            self.running.append(run)
            self.counted["started"] += 1
            run.ticket.note_started(0)


def usage(cycles: int, seed: int = 7) -> Iterator[float]:
    """Yield percent in use, second by second: 80 to 97 and back, shaken."""
    noise = random.Random(seed)
    up = [80 + 17 * step / 30 for step in range(31)]
    for _ in range(cycles):
        for percent in [*up, *[97.0] * 25, *reversed(up), *[80.0] * 25]:
            yield min(99.0, percent + noise.uniform(-0.7, 0.7))


def trace(limits: GuardLimits, total: int, cycles: int) -> list[Moment]:
    """Play it."""
    stage = Stage(limits, total)
    return [stage.second(percent) for percent in usage(cycles)]


def transitions(moments: list[Moment]) -> list[GuardState]:
    """Return every state that was come to, in order."""
    found, before = [], GuardState.OPEN
    for moment in moments:
        if moment.state is not before:
            found.append(moment.state)
        before = moment.state
    return found


# The picture

_WIDTH, _LEFT, _TOP, _HEIGHT, _GAP = 1200, 70, 60, 260, 50
_COLOURS = {GuardState.HOLDING: "#f6dfa4", GuardState.SHEDDING: "#f0b4ab"}


def draw(moments: list[Moment], title: str) -> str:
    """Return an SVG: memory with thresholds above, requests below, the guard's state behind both."""
    lower = _TOP + _HEIGHT + _GAP
    bottom = lower + _HEIGHT
    most = max(8, *(max(m.running, m.waiting) for m in moments))

    def x(second: float) -> float:
        return _LEFT + second * (_WIDTH - _LEFT - 20) / len(moments)

    def memory(percent: float) -> float:
        return _TOP + _HEIGHT * (100 - percent) / 25

    def count(number: float) -> float:
        return bottom - _HEIGHT * number / most

    def line(values: list[float], colour: str, *, dash: str = "") -> str:
        points = " ".join(f"{x(at):.1f},{value:.1f}" for at, value in enumerate(values))
        style = f' stroke-dasharray="{dash}"' if dash else ""
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{style}/>'
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{bottom + 40}">',
        '<style>text { font: 13px "DejaVu Sans", sans-serif }</style>',
        f'<rect width="{_WIDTH}" height="{bottom + 40}" fill="white"/>',
        f'<text x="{_LEFT}" y="24">{title}</text>',
    ]
    for start, end, state in _spans(moments):
        if state in _COLOURS:
            parts += [
                f'<rect x="{x(start):.1f}" y="{top}" width="{x(end) - x(start):.1f}" '
                f'height="{_HEIGHT}" fill="{_COLOURS[state]}"/>'
                for top in (_TOP, lower)
            ]
    for percent in (75, 80, 85, 90, 95, 100):
        parts.append(_rule(memory(percent), f"{percent} %"))
    parts += [_rule(count(number), str(number)) for number in range(0, most + 1, 2)]
    parts += [
        line([memory(m.low) for m in moments], "#b03020", dash="6 4"),
        line([memory(m.high) for m in moments], "#2f7d4f", dash="6 4"),
        line([memory(m.used) for m in moments], "#1f4e9c"),
        line([count(m.waiting) for m in moments], "#c77700"),
        line([count(m.running) for m in moments], "#1f4e9c"),
    ]
    for minute in range(0, len(moments), 120):
        parts.append(f'<text x="{x(minute):.1f}" y="{bottom + 20}">{minute // 60} min</text>')
    parts += _legend(_TOP - 12, _MEMORY) + _legend(lower - 12, _REQUESTS) + ["</svg>"]
    return "\n".join(parts) + "\n"


_MEMORY = (
    ("#1f4e9c", "memory in use"),
    ("#b03020", "tight above"),
    ("#2f7d4f", "enough below"),
    ("#f6dfa4", "holding: newcomers wait"),
    ("#f0b4ab", "shedding: newcomers get 503"),
)
_REQUESTS = (("#1f4e9c", "requests that run"), ("#c77700", "requests that wait"))


def _legend(y: float, entries: tuple[tuple[str, str], ...]) -> list[str]:
    parts = []
    for number, (colour, text) in enumerate(entries):
        at = _LEFT + 215 * number
        parts.append(f'<rect x="{at}" y="{y - 9}" width="14" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{at + 20}" y="{y}">{text}</text>')
    return parts


def _rule(y: float, text: str) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _spans(moments: list[Moment]) -> Iterator[tuple[int, int, GuardState]]:
    start = 0
    for at in range(1, len(moments) + 1):
        if at == len(moments) or moments[at].state is not moments[start].state:
            yield start, at, moments[start].state
            start = at


def _no_engine() -> NoReturn:
    message = "there is no engine in a trace"
    raise RuntimeError(message)


def main() -> None:
    """Draw it, and say what was drawn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    parser.add_argument("--mode", choices=("used", "reserve"), default="used")
    parser.add_argument("--card", type=float, default=24.0, help="the card's memory in GiB")
    parser.add_argument("--cycles", type=int, default=10)
    given = parser.parse_args()
    moments = trace(GuardLimits(rule=given.mode), round(given.card * _GIB), given.cycles)
    counts = Counter(transitions(moments))
    told = ", ".join(f"{state.value} {counts[state]}" for state in GuardState if counts[state])
    end = moments[-1]
    summary = (
        f"{given.cycles} × 80 to 97 % of {given.card:g} GiB and back, mode {given.mode}: "
        f"came to {told or 'no other state'}; requests: {end.finished} done, {end.refused} sent away, "
        f"{end.cut} cut"
    )
    given.picture.write_text(draw(moments, summary), encoding="utf-8")
    print(f"{summary}. Wrote {given.picture}.")


if __name__ == "__main__":
    main()
