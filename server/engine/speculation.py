"""Drafts: tokens that are decoded before anybody sampled them, because what repeats is cheap to foresee.

Which token comes next is decided by the request's sampler alone; a draft that does not come true costs time, and
nothing else. So all that is decided here is whether it pays: by how often predictions came true lately, which is known
without drafting, and by what decode calls take.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Container
from itertools import takewhile

from server.engine.limits import SchedulerLimits
from server.engine.lookup import Lookup
from server.engine.pace import Pace
from server.engine.plan import Rows
from server.engine.sequence import Sequence

_INDEXED_PER_STEP = 512
"""Tokens that one step takes in, of prompts: about 0.1 ms."""
_LEAST_GAIN = 1.1
"""Times as many tokens per second must be expected of a step with drafts."""
_LEAST_CHANCE = 0.02
"""A row whose token is less likely to come true is not worth looking at."""
_PAUSE = 4
"""Tokens without a draft after the first that did not pay; twice as many after each further one in a row."""
_MOST_DOUBLINGS = 8


class Speculation:
    """Decides what is drafted in a step: how many tokens, and for whom."""

    def __init__(
        self,
        limits: SchedulerLimits,
        pace: Pace,
        eog: Container[int],
        counters: Counter[str],
    ) -> None:
        """Nothing is followed yet."""
        self._limits = limits
        self._pace = pace
        self._eog = eog
        self._counters = counters
        self._unread: deque[Sequence] = deque()
        """Sequences with tokens that their lookup has not taken in."""
        self._saved = self._spent = 0.0
        """Of the last step with drafts: seconds that a token that comes true saves, and that each row takes."""

    def follow(self, sequence: Sequence) -> None:
        """Begin to predict a sequence that enters a slot."""
        if sequence.lookup is None:
            sequence.lookup = Lookup()
            self._unread.append(sequence)

    def extend(self, rows: list[Rows], decoding: list[Sequence]) -> int:
        """Add drafts to the rows of a step, if all are decode rows, those of `decoding`; return how many rows that is.

        While a prompt is computed nothing is drafted: who waits for the first token goes first.
        """
        self._read()
        streams = len(decoding)
        room = min(self._limits.draft_rows, self._limits.max_rows - streams)
        if streams != len(rows) or room < 1:
            return 0
        likely = [
            (-chance, chance, index)
            for index, sequence in enumerate(decoding)
            if (chance := _chance(sequence)) > 0 and _most(sequence) > 0
        ]
        drafted = 0
        for index, count in (self._allot(likely, decoding, room) if likely else {}).items():
            row = rows[index]
            draft = self._draft(decoding[index], count)
            row.tokens = [*row.tokens, *draft]
            row.outputs += len(draft)
            drafted += len(draft)
        return drafted

    def learn(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Note what came of a sequence's draft."""
        self._counters["drafted"] += drafted
        self._counters["accepted"] += accepted
        lookup = sequence.lookup
        if lookup is None:
            return
        if accepted * self._saved >= drafted * self._spent:
            lookup.losses = 0
            return
        pause = _PAUSE << min(lookup.losses, _MOST_DOUBLINGS)
        lookup.losses += 1
        lookup.paused_until = len(sequence.tokens) + pause

    # Details

    def _read(self) -> None:
        """Take in prompts, a bounded number of tokens per step."""
        unread, left = self._unread, _INDEXED_PER_STEP
        while unread and left > 0:
            sequence = unread[0]
            lookup = sequence.lookup
            if lookup is not None and not sequence.finished:
                left -= lookup.index(sequence.tokens, left)
                if lookup.backlog(sequence.tokens):
                    return
            unread.popleft()

    def _allot(
        self, likely: list[tuple[float, float, int]], sequences: list[Sequence], room: int
    ) -> dict[int, int]:
        """Return index → rows that make for the most tokens per second, most likely ones first.

        `likely`: minus the probability that the next row of a sequence comes true, that of one row, its index.
        """
        streams, gap = len(sequences), self._limits.target_gap
        span = attended = sum(len(sequence.tokens) for sequence in sequences)
        plain = self._seconds(streams, span, attended)
        # Zero while streams were not measured yet, and contexts seem to explain all that prefill took.
        if not plain:
            return {}
        heapq.heapify(likely)
        order: list[int] = []
        left = [_most(sequence) for sequence in sequences]
        expected = float(streams)
        best, rows = _LEAST_GAIN * streams / plain, 0
        while likely and len(order) < room and likely[0][0] < -_LEAST_CHANCE:
            negative, chance, index = likely[0]
            order.append(index)
            expected -= negative
            attended += len(sequences[index].tokens)
            left[index] -= 1
            if left[index]:
                heapq.heapreplace(likely, (negative * chance, chance, index))
            else:
                heapq.heappop(likely)
            count = len(order)
            if count & (count - 1) and count % 8 and likely and count < room:
                continue
            seconds = self._seconds(streams + count, span, attended)
            if not seconds or (gap is not None and streams > 1 and seconds > gap):
                break  # the others would wait for longer than they should
            if expected > best * seconds:
                best, rows = expected / seconds, count
                self._saved, self._spent = plain / streams, (seconds - plain) / count
        return Counter(order[:rows])

    def _seconds(self, rows: int, span: int, attended: int) -> float | None:
        return self._pace.step_seconds(rows, 0, span=span, attended=attended)

    def _draft(self, sequence: Sequence, count: int) -> list[int]:
        """Predict `count` tokens, or up to what would end the answer: nothing comes behind that."""
        lookup = sequence.lookup
        if lookup is None:
            return []
        eog = self._eog
        drafted = lookup.draft(sequence.tokens, count)
        return list(takewhile(lambda token: token not in eog, drafted))


def _chance(sequence: Sequence) -> float:
    lookup = sequence.lookup
    if lookup is None or len(sequence.tokens) < lookup.paused_until:
        return 0.0
    return lookup.chance


def _most(sequence: Sequence) -> int:
    """Rows that a draft may have: with one token more, the answer and its reservation are full."""
    return sequence.request.max_tokens - sequence.generated - 1
