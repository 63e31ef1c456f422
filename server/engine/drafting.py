"""The draft model's part of a step: what it is shown, what it foresees, and what that takes.

Its slots are those of the main model, with cells of their own, which do not follow the main one's: before each draft
a slot's tokens are compared with the sequence's, and what differs is shown anew. So no end of a request, no restored
prefix and no failed call has to be told here.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from server.core.clock import Clock
from server.engine.interface import DraftInfo
from server.engine.plan import DecodeCode, Foreseen, Rows
from server.engine.prefix_index import common_prefix_length
from server.engine.sequence import Sequence

log = logging.getLogger(__name__)

_FIRST_ROWS = 64
"""Rows of a call before anything was measured."""
_GAP_SHARE = 1 / 4
"""Of the target gap, for showing a sequence that the draft model does not know yet."""
_GAIN = 1 / 4
"""Weight of the last call in a moving average."""
_MOST_ABOVE = 2.0
"""A call counts as no longer than so many times what was expected: another process may have had the machine."""
_RELAX = 1 - 1 / 128
"""What calls took is believed so much less with each step in which it kept drafts away."""
_MOST_FAILURES = 3
"""Calls that fail in a row before the draft model is given up."""


class CallTimes:
    """Seconds of the draft model's calls by their rows.

    Sizes that were not measured yet are taken to cost in proportion, so that small calls are tried.
    """

    def __init__(self) -> None:
        """Nothing is measured: all costs nothing."""
        self._entries: dict[int, tuple[float, float]] = {}
        """Power of two → rows and seconds, moving averages."""
        self._curve: list[tuple[float, float]] = []

    @property
    def measured(self) -> bool:
        """Whether there was a call."""
        return bool(self._curve)

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a call."""
        bucket = rows.bit_length()
        before = self._entries.get(bucket)
        if before is None:
            before = (float(rows), seconds)
        else:
            seconds = min(seconds, _MOST_ABOVE * before[1])
        self._entries[bucket] = (
            before[0] + _GAIN * (rows - before[0]),
            before[1] + _GAIN * (seconds - before[1]),
        )
        self._curve = sorted(self._entries.values())

    def relax(self) -> None:
        """Take all calls to be a little shorter: one slow call must not keep others away for ever."""
        self._entries = {
            bucket: (rows, seconds * _RELAX) for bucket, (rows, seconds) in self._entries.items()
        }
        self._curve = sorted(self._entries.values())

    def seconds(self, rows: int) -> float:
        """Return what a call should take."""
        curve = self._curve
        if not curve:
            return 0.0
        index = bisect_left(curve, (rows, 0.0))
        if index in (0, len(curve)):
            known, took = curve[min(index, len(curve) - 1)]
            return took * rows / known
        (left, low), (right, high) = curve[index - 1], curve[index]
        return low + (high - low) * (rows - left) / (right - left)


@dataclass(slots=True)
class _Held:
    """What a slot of the draft model holds, as far as it is of use."""

    tokens: list[int] = field(default_factory=list)
    turn: int = 0
    """Whose: that of the sequence for which it was last asked."""
    scope: str = ""
    agreed: int = 0
    """The first so many tokens are that sequence's."""

    def agree(self, sequence: Sequence) -> int:
        """Count the tokens at the beginning that `sequence` has, too. Those of another cache scope are of no use."""
        if self.turn == sequence.turn:
            held, tokens, agreed = self.tokens, sequence.tokens, self.agreed
            limit = min(len(held), len(tokens))
            while agreed < limit and held[agreed] == tokens[agreed]:
                agreed += 1
            self.agreed = agreed
        else:
            request = sequence.request
            if not request.reuse_prefix or self.scope != request.cache_scope:
                self.tokens = []
            self.agreed = common_prefix_length(self.tokens, sequence.tokens)
            self.turn, self.scope = sequence.turn, request.cache_scope
        return self.agreed


@dataclass(slots=True)
class _Wish:
    sequence: Sequence
    row: Rows
    """Its row of this step's plan."""
    count: int
    missing: int
    drafted: list[int] = field(default_factory=list)


class Drafting:
    """Belongs to the engine thread."""

    def __init__(self, info: DraftInfo, slots: int, eog: Container[int], gap: float | None) -> None:
        """All slots are empty. `gap`: seconds between two tokens of a stream at most, as in `SchedulerLimits`."""
        self._info = info
        self._eog = eog
        self._gap = gap
        self._held = [_Held() for _ in range(slots)]
        self._wishes: list[_Wish] = []
        self._failures = 0
        self.times = CallTimes()

    @property
    def alive(self) -> bool:
        """Whether it is worth asking: not after it failed again and again."""
        return self._failures < _MOST_FAILURES

    def missing(self, sequence: Sequence) -> int:
        """Count the tokens that it has to be shown before it foresees the next one: the last one at least."""
        tokens = len(sequence.tokens)
        return tokens - min(self._held[sequence.slot].agree(sequence), tokens - 1)

    def seconds_to_show(self, tokens: int) -> float:
        """Return what showing it so many tokens should take."""
        rows = min(tokens, self._most_rows())
        return self.times.seconds(rows) * tokens / rows

    def begin(self) -> None:
        """Forget what was wished for a step that never came."""
        self._wishes.clear()

    def wish(self, sequence: Sequence, row: Rows, count: int) -> None:
        """Let it foresee `count` tokens behind `row`, the one of `sequence` in this step's plan."""
        self._wishes.append(_Wish(sequence, row, count, self.missing(sequence)))

    def run(
        self, foresee: Callable[[list[Rows]], Foreseen], clock: Clock, counters: Counter[str]
    ) -> int:
        """Carry out what is wished, one call after the other; return how many rows were added to those of the plan."""
        if not self._wishes:
            return 0
        wishes, self._wishes = self._wishes, []
        begun = self._begin(wishes)
        while begun and self.alive:
            rows = [rows for rows, _ in begun]
            before = clock.monotonic()
            foreseen = self._call(foresee, rows)
            if foreseen.code is not DecodeCode.OK:
                counters["draft_failed"] += 1
                self._fail(rows, foreseen)
                break
            computed = sum(len(row.tokens) for row in rows)
            self.times.note(computed, clock.monotonic() - before)
            counters["draft_calls"] += 1
            counters["draft_rows"] += computed
            self._failures = 0
            begun = self._take(begun, foreseen.tokens)
        for wish in wishes:
            wish.row.tokens = [*wish.row.tokens, *wish.drafted]
            wish.row.outputs += len(wish.drafted)
            if wish.sequence.guess is not None:
                wish.sequence.guess.pending = len(wish.drafted)
        return sum(len(wish.drafted) for wish in wishes)

    # Details

    def _begin(self, wishes: list[_Wish]) -> list[tuple[Rows, _Wish]]:
        """Show what is missing, within one call. Who does not fit in is shown less, and gets no draft yet."""
        room = min(max(self._most_rows(), len(wishes)), self._info.rows)
        begun: list[tuple[Rows, _Wish]] = []
        for wish in sorted(wishes, key=lambda one: one.missing):
            sequence = wish.sequence
            start = len(sequence.tokens) - wish.missing
            tokens = sequence.tokens[start : start + room]
            if tokens and max(tokens) >= self._info.n_vocab:
                if sequence.guess is not None:
                    sequence.guess.possible = False
            elif tokens:
                caught_up = len(tokens) == wish.missing
                begun.append((Rows(sequence.slot, start, tokens, int(caught_up)), wish))
                room -= len(tokens)
        begun.sort(key=lambda one: one[0].slot)
        return begun

    def _take(self, begun: list[tuple[Rows, _Wish]], tokens: list[int]) -> list[tuple[Rows, _Wish]]:
        """Note what was computed and foreseen; return what goes on, each with its next row."""
        goes_on: list[tuple[Rows, _Wish]] = []
        likeliest = iter(tokens)
        for rows, wish in begun:
            held = self._held[rows.slot]
            held.tokens[rows.start :] = rows.tokens
            held.agreed = min(held.agreed, rows.start)
            if not rows.outputs:
                continue
            token = next(likeliest)
            if token in self._eog:  # nothing comes behind it
                continue
            wish.drafted.append(token)
            if len(wish.drafted) < wish.count:
                end = rows.start + len(rows.tokens)
                goes_on.append((Rows(rows.slot, end, [token], outputs=1), wish))
        return goes_on

    def _call(self, foresee: Callable[[list[Rows]], Foreseen], rows: list[Rows]) -> Foreseen:
        try:
            return foresee(rows)
        except Exception as error:
            log.exception("A call of the draft model failed")
            return Foreseen(DecodeCode.FAILED, reason=str(error))

    def _fail(self, planned: list[Rows], foreseen: Foreseen) -> None:
        """Begin anew in the slots of a failed call; the step goes on with what was foreseen before it."""
        for rows in planned:
            self._held[rows.slot] = _Held()
        self._failures += 1
        log.warning(
            "A call of the draft model ended with %s %s", foreseen.code.name, foreseen.reason
        )
        if not self.alive:
            log.error("The draft model failed %d times in a row: no more drafts", self._failures)

    def _most_rows(self) -> int:
        """Return how many rows a call may have, so that streams do not wait for much longer."""
        rows, most = _FIRST_ROWS, self._info.rows
        if not self.times.measured:
            return min(rows, most)
        if self._gap is None:
            return most
        while rows < most and self.times.seconds(2 * rows) <= _GAP_SHARE * self._gap:
            rows *= 2
        return min(rows, most)
