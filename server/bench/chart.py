"""The figures as an SVG that needs nothing beside itself: waiting, gaps and speed, a band for each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from server.bench.report import Cell, seconds

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's: they differ for colour-blind readers, too."""
_BAR, _PAD, _LEFT, _PANEL, _SPACE = 15, 14, 178, 270, 62
_RIGHT = 64
_TOP = 116
_GREY, _INK, _BAND = "#6b7280", "#1f2937", "#f3f4f6"


def chart(rows: Mapping[str, Sequence[Cell]], subtitle: str) -> str:
    """Draw all rows. `rows`: title → servers, the same ones in the same order."""
    servers = list(dict.fromkeys(cell.server for cells in rows.values() for cell in cells))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(servers)}
    heights = [_PAD + _BAR * len(cells) for cells in rows.values()]
    bottom = _TOP + sum(heights)
    lefts = [_LEFT + i * (_PANEL + _SPACE) for i in range(3)]
    every = [cell for cells in rows.values() for cell in cells]
    failures = 110 if any(cell.figures.errors for cell in every) else 0
    width = _LEFT + 3 * _PANEL + 2 * _SPACE + _RIGHT + failures
    first = _Log(lefts[0], [v for c in every for v in (c.figures.first_p50, c.figures.first_p95)])
    gaps = _Log(lefts[1], [v for c in every for v in (c.figures.gap_p50, c.figures.gap_p99)])
    rate = _Linear(lefts[2], [c.figures.rate for c in every])
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 44}" '
        f'viewBox="0 0 {width} {bottom + 44}" font-family="system-ui, sans-serif" font-size="12">'
    )
    parts = [
        opening,
        f'<rect width="{width}" height="{bottom + 44}" fill="#ffffff"/>',
        _text(16, 28, "onegpu bench", _INK, size=18, weight="600"),
        _text(16, 48, subtitle, _GREY),
        *_legend(servers, colours),
    ]
    y = _TOP
    for place, height in enumerate(heights):
        if place % 2 == 0:
            parts.append(_rect(8, y, width - 16, height, _BAND))
        y += height
    heads = (
        "first token, seconds: p50 ● to p95 ▏",
        "gap between tokens, seconds: p50 ● to p99 ▏",
        "tokens per second",
    )
    axes: tuple[_Log | _Linear, ...] = (first, gaps, rate)
    for left, head, axis in zip(lefts, heads, axes, strict=True):
        parts.append(_text(left, _TOP - 12, head, _INK, weight="600"))
        parts += axis.grid(_TOP, bottom)
    y = _TOP
    for (name, cells), height in zip(rows.items(), heights, strict=True):
        parts.append(_text(16, y + height / 2 + 4, name, _INK))
        for i, cell in enumerate(cells):
            middle = y + _PAD / 2 + _BAR * (i + 0.5)
            parts += _cell(cell, middle, colours[cell.server], (first, gaps, rate))
        y += height
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Log:
    """Seconds on a logarithmic axis."""

    def __init__(self, left: float, values: Sequence[float]) -> None:
        known = [value for value in values if value > 0]
        self.left = left
        self._low = math.floor(math.log10(min(known, default=0.1)))
        self._high = max(math.ceil(math.log10(max(known, default=1.0))), self._low + 1)

    def at(self, value: float) -> float:
        """Return the place of a value."""
        if value <= 0:  # two tokens that came together
            return self.left
        part = (math.log10(value) - self._low) / (self._high - self._low)
        return self.left + _PANEL * max(0.0, part)

    def grid(self, top: float, bottom: float) -> list[str]:
        """Draw a line at each power of ten."""
        powers = range(self._low, self._high + 1)
        return [
            line for p in powers for line in _tick(self.at(10.0**p), top, bottom, f"{10.0**p:g}")
        ]


class _Linear:
    """Tokens per second from nought."""

    def __init__(self, left: float, values: Sequence[float]) -> None:
        most = max((value for value in values if value > 0), default=1.0)
        rough: float = 10.0 ** math.floor(math.log10(most / 3))
        self.left = left
        self._step = next(n * rough for n in (1, 2, 5, 10) if most / (n * rough) <= 5)
        self._high = self._step * math.ceil(most / self._step)

    def at(self, value: float) -> float:
        """Return the place of a value."""
        return self.left + _PANEL * value / self._high

    def grid(self, top: float, bottom: float) -> list[str]:
        """Draw up to six lines."""
        count = round(self._high / self._step)
        values = [self._step * i for i in range(count + 1)]
        return [line for v in values for line in _tick(self.at(v), top, bottom, f"{v:g}")]


def _cell(cell: Cell, y: float, colour: str, axes: tuple[_Log, _Log, _Linear]) -> list[str]:
    """Draw one server of one row in all three panels."""
    found, (first, gaps, rate) = cell.figures, axes
    parts = _span(first, found.first_p50, found.first_p95, y, colour)
    parts += _span(gaps, found.gap_p50, found.gap_p99, y, colour)
    if not math.isnan(found.rate):
        end = rate.at(found.rate)
        parts.append(_rect(rate.left, y - 4.5, end - rate.left, 9, colour))
        parts.append(_text(end + 5, y + 4, f"{found.rate:.1f}", _INK, size=11))
    if found.errors:
        wrong = f"{found.errors} of {found.requests} failed"
        at = rate.left + 4 if math.isnan(found.rate) else rate.at(found.rate) + 40
        parts.append(_text(at, y + 4, wrong, "#b91c1c", size=11))
    return parts


def _span(axis: _Log, low: float, high: float, y: float, colour: str) -> list[str]:
    if math.isnan(low) or math.isnan(high):
        return [_text(axis.left + 4, y + 4, "–", _GREY, size=11)]
    a, b = axis.at(low), axis.at(high)
    return [
        f'<line x1="{a:.1f}" y1="{y:.1f}" x2="{b:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="4"/>',
        f'<circle cx="{a:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>',
        _rect(b - 1, y - 5.5, 2.5, 11, colour),
        _text(b + 7, y + 4, seconds(high), _INK, size=11),
    ]


def _legend(servers: Sequence[str], colours: Mapping[str, str]) -> list[str]:
    parts, x = [], 16.0
    for name in servers:
        parts += [_rect(x, 62, 12, 12, colours[name]), _text(x + 18, 72, name, _INK)]
        x += 44 + 7.2 * len(name)
    return parts


def _tick(x: float, top: float, bottom: float, label: str) -> list[str]:
    line = f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#d1d5db" stroke-width="1"/>'
    return [line, _text(x, bottom + 18, label, _GREY, size=11, anchor="middle")]


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    fill: str,
    *,
    size: int = 12,
    weight: str = "400",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
