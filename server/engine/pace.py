"""How long a decode call takes, learned from those before it.

The time of a call is taken as T(rows) + what its outputs and its contexts add. T is a table: calls
with about equally many rows share an entry, a moving average; between entries it is interpolated,
and it never falls. What an output, a cell read and a cell attended add is estimated from how times
within one entry differ (the within estimator of a regression with fixed effects), so it need not
be told apart from T.

Deterministic, without a clock: the loop feeds it after each call that succeeded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import mul
from typing import NamedTuple

from server.engine.plan import Rows

_MEMORY = 16
"""Calls after which an entry has mostly forgotten."""
_SLOPE_MEMORY = 128
"""Calls after which what contexts add has mostly been forgotten."""
_MOST_ABOVE = 2.0
"""A call counts as no longer than so many times what was expected: another process may have had the
machine. If it stays slow, the average follows within some calls."""
_OFF = 4 / 3
"""So many times more or less than expected is no noise ..."""
_OFF_CALLS = 3
"""... when as many calls in a row are: the average begins anew."""
_MOST_PER_ROW = 1.25
"""A row of a larger call costs at most so many times what it costs in a smaller one. Else one
outlier could keep large calls from being tried, and so corrected, for ever."""
_EXTRAS = 4
"""Of a call: what its outputs and contexts add."""
_SWEEPS = 8
"""Of coordinate descent over as many unknowns."""
_REFIT = 4
"""Calls after which the fit is made anew where an average moves little with each."""


class Work(NamedTuple):
    """What a decode call computes."""

    rows: int
    outputs: int
    """Rows whose logits are sampled."""
    span: int = 0
    """Cells that are read: the contexts of all planned sequences, each counted once."""
    attended: int = 0
    """Cells that are attended: a row's context, summed over all rows."""

    @classmethod
    def of(cls, planned: Iterable[Rows]) -> Work:
        """Count that of a plan's rows."""
        rows = outputs = span = attended = 0
        for row in planned:
            count = len(row.tokens)
            rows += count
            outputs += row.outputs
            span += row.start + count
            attended += attended_cells(row.start, count)
        return cls(rows, outputs, span, attended)


def attended_cells(start: int, rows: int) -> int:
    """Cells that `rows` rows of one sequence attend together, the first one at position `start`."""
    return rows * start + rows * (rows + 1) // 2


class _Entry:
    """Moving averages over calls with about equally many rows."""

    __slots__ = ("calls", "extras", "off", "rows", "seconds")

    def __init__(self, rows: float, seconds: float, extras: list[float]) -> None:
        self.calls = 1
        self.rows = rows
        self.seconds = seconds
        self.extras = extras
        self.off = 0
        """Calls in a row that took longer than expected; negative: shorter."""

    def note(self, ratio: float) -> None:
        """Begin anew where conditions have changed. `ratio`: of a call's time to what was expected."""
        if ratio > _OFF:
            self.off = max(self.off, 0) + 1
        elif ratio < 1 / _OFF:
            self.off = min(self.off, 0) - 1
        else:
            self.off = 0
        if abs(self.off) >= _OFF_CALLS:
            self.calls, self.off = 1, 0


class _Pool(NamedTuple):
    """Neighbouring entries that count as equally long."""

    weight: int
    first: float
    last: float
    """Their least and most rows."""
    seconds: float

    def joined(self, other: _Pool) -> _Pool:
        """Take in the next one."""
        weight = self.weight + other.weight
        seconds = self.weight * self.seconds + other.weight * other.seconds
        return _Pool(weight, self.first, other.last, seconds / weight)


class Pace:
    """Belongs to the engine thread. Other threads may read `prefill_row_seconds`."""

    def __init__(self, tile_rows: int = 1) -> None:
        """Nothing is measured yet. `tile_rows`: as in `CallShape`; calls with fewer rows attend at another price."""
        self._tile = tile_rows
        self.prefill_row_seconds: float | None = None
        """What a prompt row takes in the largest calls seen, at the beginning of a context."""
        self._entries: dict[int, _Entry] = {}
        self._curve: list[tuple[float, float]] = []
        """Rows → seconds without what outputs and contexts add; both ascend."""
        self._slopes = [0.0] * _EXTRAS
        """Seconds per output, cell read, cell attended row by row, cell attended in tiles."""
        self._moments = [[0.0] * _EXTRAS for _ in range(_EXTRAS)]
        self._products = [0.0] * _EXTRAS
        self._unfitted = 0
        """Calls since the last fit."""

    def observe(self, work: Work, seconds: float) -> None:
        """Learn from a call that succeeded."""
        if work.rows < 1 or seconds <= 0:
            return
        extras = self._extras(work)
        bucket = _bucket(work.rows)
        entry = self._entries.get(bucket)
        if entry is None:
            self._entries[bucket] = _Entry(work.rows, seconds, extras)
        else:
            expected = self.seconds(work)
            if expected:
                entry.note(seconds / expected)
                seconds = min(seconds, _MOST_ABOVE * expected)
            self._compare(entry, work.rows, extras, seconds)
            entry.calls += 1
            gain = 1 / min(entry.calls, _MEMORY)
            entry.rows += gain * (work.rows - entry.rows)
            entry.seconds += gain * (seconds - entry.seconds)
            for index, extra in enumerate(extras):
                entry.extras[index] += gain * (extra - entry.extras[index])
        self._unfitted += 1
        if entry is not None and entry.calls >= _MEMORY and self._unfitted < _REFIT:
            return
        self._unfitted = 0
        self._curve = self._fit()
        largest, base = self._curve[-1]
        self.prefill_row_seconds = base / largest + self._attending(largest) * largest / 2

    def seconds(self, work: Work) -> float | None:
        """Return what `work` should take; None before anything was measured."""
        if not self._curve:
            return None
        return self._base(work.rows) + _dot(self._slopes, self._extras(work))

    def step_seconds(
        self,
        decode_rows: int,
        prefill_rows: int,
        *,
        outputs: int | None = None,
        span: int = 0,
        attended: int = 0,
    ) -> float | None:
        """Return what a call should take; None before anything was measured.

        `outputs`: as many as there are decode rows unless told. `span` and `attended` as in `Work`.
        """
        rows = decode_rows + prefill_rows
        return self.seconds(Work(rows, decode_rows if outputs is None else outputs, span, attended))

    def tile_seconds(self, cells: int) -> float:
        """Return what attending `cells` more adds to one tile of a call: all its rows do, needed or not."""
        return self._slopes[3] * self._tile * cells if self._tile > 1 else 0.0

    def prefill_seconds(self, rows: int, start: int = 0, *, chunk: int = 512) -> float | None:
        """Return what computing prompt rows from position `start` takes alone, `chunk` rows a call.

        None before anything was measured.
        """
        if not self._curve:
            return None
        calls, rest = divmod(rows, chunk)
        whole = calls * chunk
        seconds = self._attending(chunk) * attended_cells(start, whole)
        seconds += self._attending(rest) * attended_cells(start + whole, rest)
        spans = calls * start + chunk * calls * (calls + 1) // 2
        if rest:
            seconds += self._base(rest)
            spans += start + rows
        return seconds + calls * self._base(chunk) + self._slopes[1] * spans

    # Details

    def _extras(self, work: Work) -> list[float]:
        """Sort cells attended by how they are; a tile that is not full costs as much as a full one."""
        rows, attended = work.rows, float(work.attended)
        if rows < self._tile:
            return [float(work.outputs), float(work.span), attended, 0.0]
        full = -(-rows // self._tile) * self._tile / rows
        return [float(work.outputs), float(work.span), 0.0, attended * full]

    def _attending(self, rows: float) -> float:
        """Return seconds per cell attended in calls of so many rows."""
        return self._slopes[2 if rows < self._tile else 3]

    def _base(self, rows: float) -> float:
        """Interpolate; less than was ever measured takes as long as the least, more in proportion."""
        curve = self._curve
        index = bisect_left(curve, (rows, 0.0))
        if index == 0:
            return curve[0][1]
        if index == len(curve):
            most, high = curve[-1]
            return high * rows / most
        (left, low), (right, high) = curve[index - 1], curve[index]
        return low + (high - low) * (rows - left) / (right - left)

    def _fit(self) -> list[tuple[float, float]]:
        """Take from each entry what outputs and contexts add; make neighbours that fall one."""
        self._slopes = self._solve()
        pools: list[_Pool] = []
        per_row = float("inf")
        for _, entry in sorted(self._entries.items()):
            base = max(entry.seconds - _dot(self._slopes, entry.extras), 0.0)
            base = min(base, _MOST_PER_ROW * per_row * entry.rows)
            per_row = min(per_row, max(base, entry.seconds / 4) / entry.rows)
            pool = _Pool(min(entry.calls, _MEMORY), entry.rows, entry.rows, base)
            while pools and pools[-1].seconds > pool.seconds:
                pool = pools.pop().joined(pool)
            pools.append(pool)
        ends = ((rows, pool.seconds) for pool in pools for rows in {pool.first, pool.last})
        return sorted(ends)

    def _compare(self, entry: _Entry, rows: int, extras: Sequence[float], seconds: float) -> None:
        """Note how far a call's outputs, contexts and time are from those of its like.

        Relative to the time: a long call's noise would drown what short ones tell.
        """
        weight = 1 / entry.seconds
        further = [
            weight * (extra - mean) for extra, mean in zip(extras, entry.extras, strict=True)
        ]
        longer = weight * (seconds - entry.seconds - self._base(rows) + self._base(entry.rows))
        keep = 1 - 1 / _SLOPE_MEMORY
        for row, (moments, one) in enumerate(zip(self._moments, further, strict=True)):
            for column, other in enumerate(further):
                moments[column] = keep * moments[column] + one * other
            self._products[row] = keep * self._products[row] + one * longer

    def _solve(self) -> list[float]:
        """Least squares with no slope below zero, from the last solution on."""
        slopes = list(self._slopes)
        for _ in range(_SWEEPS):
            before = list(slopes)
            for index, moments in enumerate(self._moments):
                own = moments[index]
                if own > 0:
                    others = _dot(moments, slopes) - own * slopes[index]
                    slopes[index] = max(0.0, (self._products[index] - others) / own)
            if slopes == before:
                break  # further sweeps would change nothing
        return slopes


def _bucket(rows: int) -> int:
    """Return the entry's number: two for each power of two."""
    power = rows.bit_length() - 1
    return 2 * power + (2 * rows >= 3 << power)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    # Some twenty times a step: without a frame per product it takes a third of the time.
    total: float = sum(map(mul, left, right))
    return total
