"""Which prompt rows a step computes: what fits its time, short remainders first, nobody left out for long."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter

from server.engine.limits import SchedulerLimits
from server.engine.pace import Pace, Work, attended_cells
from server.engine.plan import PLAIN_CALLS, CallShape, Rows
from server.engine.prefix_index import ALIGN, MIN_PREFILL_ROWS, chunk_rows
from server.engine.sequence import Sequence as Running

MOST_PASSED = 3
"""Steps in a row in which who was admitted first may get no row; in the next one it is first."""
LONGER = 1.25
"""A step with which a prompt ends may take so many times its time: the last rows cost no step of their own."""
PREFILL_SHARE = 1 / 3
"""Prefill has so much of the time that the decode rows take, even where they alone take too long."""
UNMEASURED_ROWS = 128
"""Most prefill rows beside decode rows before any call was measured."""


class Room:
    """What one step has left: rows, and seconds where somebody waits for its end."""

    def __init__(
        self,
        pace: Pace,
        work: Work,
        rows: int,
        seconds: float | None,
        *,
        align: int = ALIGN,
        chunk: int = 1,
    ) -> None:
        """`work`: what is planned already; `seconds`: for all of the step.

        Chunks end at multiples of `align`. `chunk`: as `CallShape.chunk_rows`.
        """
        self._pace = pace
        self._align = align
        self._chunk = chunk
        self._work = work
        self._rows = rows
        self._seconds = seconds
        self._empty = True

    def take(self, start: int, remaining: int) -> int:
        """Return how many of a prompt's `remaining` rows fit, the first at position `start`; they are planned now.

        The first prompt gets some whatever they take, and a chunk has its rows: the last ones
        cost next to nothing, or less.
        """
        most = min(remaining, self._rows)
        count = most if self._seconds is None else self._fitting(start, most, remaining)
        if count < most:
            total = max((self._work.rows + count) // self._chunk, 1) * self._chunk
            count = min(max(total - self._work.rows, 0), most)
        if self._empty:
            count = max(count, min(most, MIN_PREFILL_ROWS))
        count = chunk_rows(start, start + remaining, count, self._align)
        if count:
            self._work = self._with(start, count)
            self._rows -= count
            self._empty = False
        return count

    def _fitting(self, start: int, most: int, remaining: int) -> int:
        limit = self._seconds or 0.0
        if most == remaining and self._after(start, most) <= LONGER * limit:
            return most
        units = range(1, most // ALIGN + 1)
        fits = bisect_right(units, limit, key=lambda unit: self._after(start, unit * ALIGN))
        return ALIGN * fits + ALIGN - 1 if fits < len(units) else most

    def _after(self, start: int, rows: int) -> float:
        return self._pace.seconds(self._with(start, rows)) or 0.0

    def _with(self, start: int, rows: int) -> Work:
        work = self._work
        return Work(
            work.rows + rows,
            work.outputs,
            work.span + start + rows,
            work.attended + attended_cells(start, rows),
        )


class Prefill:
    """Chooses a step's prefill rows.

    The least remainder first, divided by how many wait for it (Smith's rule: the least mean wait). Who was admitted
    first gets rows in at least one of `MOST_PASSED` + 1 steps, so every prompt ends in bounded time.
    """

    def __init__(self, limits: SchedulerLimits, pace: Pace, calls: CallShape = PLAIN_CALLS) -> None:
        """Nobody was passed yet. `calls`: as in `ModelInfo`."""
        self._calls = calls
        self._limits = limits
        self._pace = pace
        self._passed = 0
        """Steps in a row in which who was admitted first got no row."""
        self._owed = False
        """Whether streams have waited for a step that was prefill's alone."""

    def step(
        self,
        prefilling: Sequence[Running],
        followers: Mapping[Running, int],
        decode: list[Rows],
        cells_beside: Callable[[], int],
        halvings: int,
    ) -> tuple[list[Rows], int]:
        """Return a step's rows, sorted by slot, and how many of them decode.

        `cells_beside`: counts cells that `decode` attends and no prompt does. Where they would add more to a tile
        than streams take alone, streams and prompts have steps in turn; also where a call takes several passes.
        """
        if not self._apart(decode, cells_beside):
            rows = decode + self.rows(prefilling, followers, decode, halvings)
            rows.sort(key=attrgetter("slot"))
            return rows, len(decode)
        self._owed = not self._owed
        if not self._owed:
            return decode, len(decode)
        rows = self.rows(prefilling, followers, (), halvings, waiting=decode)
        rows.sort(key=attrgetter("slot"))
        return rows, 0

    def _apart(self, decode: Sequence[Rows], cells_beside: Callable[[], int]) -> bool:
        if decode and not self._calls.one_pass:
            return True
        if decode and self._calls.tile_rows > 1:
            alone = self._pace.seconds(Work.of(decode))
            if alone is not None and self._pace.tile_seconds(cells_beside()) > alone:
                return True
        self._owed = False
        return False

    def rows(
        self,
        prefilling: Sequence[Running],
        followers: Mapping[Running, int],
        decode: Sequence[Rows],
        halvings: int,
        *,
        waiting: Sequence[Rows] = (),
    ) -> list[Rows]:
        """Return chunks, at least one, to compute beside `decode`, or while `waiting` wait for their step.

        `followers`: who else waits for a prompt; `halvings`: how often calls in a row found no cells. What runs in the
        background gets rows where somebody follows it, or nobody else wants any.
        """
        wanted = [one for one in prefilling if not one.background or followers[one]]
        prefilling = wanted or prefilling
        order = sorted(prefilling, key=lambda one: (one.remaining / (1 + followers[one]), one.turn))
        oldest = min(prefilling, key=attrgetter("turn"))
        if self._passed >= MOST_PASSED:
            order.remove(oldest)
            order.insert(0, oldest)
        timed = bool(decode or waiting)
        rows = _packed(order, self._room(decode, halvings, timed=timed, waiting=waiting))
        if not timed and _some_end(rows, order):
            rows = _packed(order, self._room(decode, halvings, timed=True))
        served = any(row.slot == oldest.slot for row in rows)
        self._passed = 0 if served else self._passed + 1
        return rows

    def _room(
        self,
        decode: Sequence[Rows],
        halvings: int,
        *,
        timed: bool,
        waiting: Sequence[Rows] = (),
    ) -> Room:
        """`timed`: somebody waits for the end of the step, a stream or who begins one with it."""
        limits, work = self._limits, Work.of(decode)
        most = limits.prefill_rows_decoding if timed else limits.prefill_rows
        seconds = limits.target_gap if timed else None
        if seconds is not None:
            streams = Work.of(decode or waiting)
            alone = self._pace.seconds(streams) if streams.rows else 0.0
            if alone is None:
                most, seconds = min(most, UNMEASURED_ROWS), None
            else:
                seconds = max(seconds, alone * (1 + PREFILL_SHARE))
                seconds -= alone if waiting else 0.0
        most = min(limits.max_rows - work.rows, most) >> halvings
        most = max(most, MIN_PREFILL_ROWS)
        align, chunk = limits.reuse_align, self._calls.chunk_rows
        return Room(self._pace, work, most, seconds, align=align, chunk=chunk)


def _packed(order: Iterable[Running], room: Room) -> list[Rows]:
    rows = []
    for sequence in order:
        start, length = sequence.computed, len(sequence.tokens)
        count = room.take(start, length - start)
        if count == 0:
            break
        end = start + count
        tokens = sequence.tokens[start:end]
        rows.append(Rows(sequence.slot, start, tokens, outputs=int(end == length)))
    return rows


def _some_end(rows: Sequence[Rows], order: Sequence[Running]) -> bool:
    """Whether a step ends some prompts, whose streams begin with it, and computes others, too."""
    ends = sum(row.outputs for row in rows)
    return 0 < ends < len(order)
