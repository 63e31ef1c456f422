"""Drafts: tokens that are decoded before anybody sampled them, because what repeats is cheap to foresee.

Which token comes next is decided by the request's sampler alone; a draft that does not come true costs time, and
nothing else. So all that is decided here is whether it pays: by how often predictions came true lately, which is known
without drafting, and by what decode calls take.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Container
from itertools import takewhile

from server.core.clock import Clock
from server.engine.drafting import Drafting
from server.engine.guessing import Guessing
from server.engine.interface import DraftInfo
from server.engine.limits import SchedulerLimits
from server.engine.lookup import Lookup
from server.engine.pace import Pace
from server.engine.plan import Foreseen, Rows, StepPlan
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
        draft: DraftInfo | None = None,
    ) -> None:
        """Nothing is followed yet. `draft`: the draft model, if there is one."""
        self.guessing: Guessing | None = None
        if draft is not None:
            drafting = Drafting(draft, limits.slots, eog, limits.target_gap)
            self.guessing = Guessing(drafting, counters)
        self._limits = limits
        self._pace = pace
        self._eog = eog
        self._counters = counters
        self._unread: deque[Sequence] = deque()
        """Sequences with tokens that their lookup has not taken in."""
        self._saved = self._spent = 0.0
        """Of the last step with drafts: seconds that a token that comes true saves, and that each row takes."""
        self._gain = 0.0
        """Seconds that each token of an answer came earlier."""

    def follow(self, sequence: Sequence) -> None:
        """Begin to predict a sequence that enters a slot."""
        if sequence.lookup is None:
            sequence.lookup = Lookup()
            self._unread.append(sequence)
            if self.guessing is not None:
                self.guessing.follow(sequence)

    def extend(self, rows: list[Rows], decoding: list[Sequence]) -> int:
        """Add drafts to the rows of a step, if all are decode rows, those of `decoding`; return how many rows that is.

        While a prompt is computed nothing is drafted: who waits for the first token goes first.
        """
        self._read()
        streams = len(decoding)
        room = min(self._limits.draft_rows, self._limits.max_rows - streams)
        if streams != len(rows) or room < 1:
            return 0
        chances = [_chance(sequence) if sequence.draftable > 0 else 0.0 for sequence in decoding]
        if self.guessing is None and not any(chances):
            return 0
        cells = sum(len(sequence.tokens) for sequence in decoding)
        # Zero while streams were not measured yet, and contexts seem to explain all that prefill took.
        plain = self._seconds(streams, cells, cells)
        if not plain:
            return 0
        guessed: set[int] = set()
        if self.guessing is not None:
            guessed = self.guessing.choose(decoding, chances, plain / streams, self._gain)
        allotted = self._allot(chances, guessed, decoding, room, plain)
        if self.guessing is not None:
            calls = self.guessing.wish(guessed, allotted, rows, decoding)
            if calls:
                self.guessing.price(plain, self._foreseeing(calls) / sum(calls))
        drafted = 0
        for index, count in allotted.items():
            if index not in guessed:
                row = rows[index]
                draft = self._draft(decoding[index], count)
                row.tokens = [*row.tokens, *draft]
                row.outputs += len(draft)
                drafted += len(draft)
        return drafted

    def foresee(self, foresee: Callable[[list[Rows]], Foreseen], clock: Clock) -> int:
        """Let the draft model add to the rows what `extend` wished; return how many rows that is."""
        if self.guessing is None:
            return 0
        return self.guessing.drafting.run(foresee, clock, self._counters)

    def took(self, plan: StepPlan, seconds: float) -> None:
        """Note what the decode call of `plan` took."""
        if self.guessing is not None and plan.draft_rows:
            self.guessing.took(seconds, plan.decode_rows, plan.draft_rows)

    def learn(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Note what came of a sequence's draft."""
        self._counters["drafted"] += drafted
        self._counters["accepted"] += accepted
        lookup = sequence.lookup
        guessed = self.guessing is not None and self.guessing.learn(sequence, drafted, accepted)
        if guessed or lookup is None:
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
        self,
        chances: list[float],
        guessed: Container[int],
        sequences: list[Sequence],
        room: int,
        plain: float,
    ) -> dict[int, int]:
        """Return index → rows that make for the most tokens per second, most likely ones first.

        `chances`: by index, the probability that one row comes true if those before it did.
        `guessed`: indices whose rows the draft model would have to foresee. `plain`: seconds without drafts.
        """
        streams, gap = len(sequences), self._limits.target_gap
        span = attended = sum(len(sequence.tokens) for sequence in sequences)
        # Minus the probability that the next row of a sequence comes true, that of one row, its index.
        likely = [(-chance, chance, index) for index, chance in enumerate(chances) if chance > 0]
        heapq.heapify(likely)
        order: list[int] = []
        left = [sequence.draftable for sequence in sequences]
        expected = float(streams)
        best, rows = _LEAST_GAIN * streams / plain, 0
        calls: list[int] = []
        """Rows of each call of the draft model."""
        while likely and len(order) < room and likely[0][0] < -_LEAST_CHANCE:
            negative, chance, index = likely[0]
            order.append(index)
            if index in guessed:
                depth = sequences[index].draftable - left[index]
                calls += [0] * (depth == len(calls))
                calls[depth] += 1
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
            main = self._seconds(streams + count, span, attended)
            seconds = (main or 0.0) + self._foreseeing(calls)
            if not main or (gap is not None and streams > 1 and seconds > gap):
                break  # the others would wait for longer than they should
            if expected > best * seconds:
                best, rows = expected / seconds, count
                self._saved, self._spent = plain / streams, (main - plain) / count
                self._gain = plain / streams - seconds / expected
        return Counter(order[:rows])

    def _seconds(self, rows: int, span: int, attended: int) -> float | None:
        return self._pace.step_seconds(rows, 0, span=span, attended=attended)

    def _foreseeing(self, calls: list[int]) -> float:
        """Return what calls of the draft model should take."""
        if self.guessing is None:
            return 0.0
        return sum(map(self.guessing.drafting.times.seconds, calls))

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
