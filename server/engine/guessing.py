"""Whom the draft model is asked for, by what came true of its drafts lately.

Unlike a lookup's, its predictions cost something, so nothing is known of them until some were tried. Hope comes first:
a draft of one token, then of twice as many each time that all came true. What it saved and what it took is added up
for each sequence; while that is a loss, pauses get longer and longer.
"""

from __future__ import annotations

from collections import Counter

from server.engine.drafting import Drafting
from server.engine.guess import Guess
from server.engine.plan import Rows
from server.engine.sequence import Sequence

_DISTRUST = 3
"""Sequences in a row for which it did not pay, after which others begin with a pause ..."""
_MOST_LOSSES = 6
"""... of at most so many doublings."""
_SURE = 0.8
"""A lookup that is so likely right is preferred: it costs nothing."""
_FEW_TOKENS = 8
"""As many are shown to the draft model without asking whether that pays."""
_HORIZON = 64
"""Tokens that an answer is taken to go on for; as many as it has, if these are more."""
_VENTURE = 1 / 32
"""Of the time that an answer took so far, for showing it to a draft model that has not proven itself."""


class Guessing:
    """Decides for which sequences the draft model is asked, and learns from what came of it."""

    def __init__(self, drafting: Drafting, counters: Counter[str]) -> None:
        """Nothing is known of the draft model."""
        self.drafting = drafting
        self._counters = counters
        self._plain = self._foreseeing = 0.0
        """Of this step: seconds that it should take without drafts, and of the draft model's calls for each row."""
        self._saved = self._spent = 0.0
        """Of this step: seconds that a token that came true saved, and that each row took."""
        self._proven = False
        self._losses = 0
        """Sequences in a row for which it did not pay."""

    @property
    def trusted(self) -> bool:
        """Whether it paid for others, and does not keep failing to."""
        return self._proven and self._losses < _DISTRUST

    def follow(self, sequence: Sequence) -> None:
        """Begin to guess a sequence that enters a slot."""
        losses = self._losses if self._losses >= _DISTRUST else 0
        sequence.guess = Guess(len(sequence.tokens), losses, trusted=self.trusted)

    def choose(
        self, decoding: list[Sequence], chances: list[float], seconds: float, gain: float
    ) -> set[int]:
        """Return the indices of those whom the draft model may foresee better, and raise their `chances`.

        `seconds`: what a token takes without drafts; `gain`: by how much it came earlier with them.
        """
        drafting = self.drafting
        drafting.begin()
        guessed: set[int] = set()
        for index, sequence in enumerate(decoding):
            guess = sequence.guess
            if guess is None:
                continue
            guess.pending = 0
            better = chances[index] < min(_SURE, guess.chance) and sequence.draftable > 0
            asked = better and drafting.alive and guess.ready(len(sequence.tokens))
            if asked and self._worth_showing(sequence, seconds, gain):
                chances[index] = guess.chance
                guessed.add(index)
        return guessed

    def wish(
        self,
        guessed: set[int],
        allotted: dict[int, int],
        rows: list[Rows],
        decoding: list[Sequence],
    ) -> list[int]:
        """Ask the draft model for what is `allotted` to those of `guessed`, or for less to begin with.

        Return how many rows each of its calls has.
        """
        counts: list[int] = []
        for index in guessed:
            sequence, count = decoding[index], allotted.get(index, 0)
            guess = sequence.guess
            if guess is None:
                continue
            if count:
                allotted[index] = min(count, guess.most)
                counts.append(allotted[index])
                self.drafting.wish(sequence, rows[index], allotted[index])
            elif (paid := guess.rest(len(sequence.tokens))) is not None:
                self._judge(paid=paid)
        if guessed and not counts:
            self.drafting.times.relax()
        return [sum(count > call for count in counts) for call in range(max(counts, default=0))]

    def price(self, plain: float, foreseeing: float) -> None:
        """Note what is at stake in this step: seconds without drafts, and of the draft model's calls for each row."""
        self._plain, self._foreseeing = plain, foreseeing

    def took(self, seconds: float, streams: int, drafted: int) -> None:
        """Note what the step's decode call took."""
        self._spent = self._foreseeing + (seconds - self._plain) / drafted
        self._saved = self._plain / streams

    def learn(self, sequence: Sequence, drafted: int, accepted: int) -> bool:
        """Note what came of a sequence's draft; False if it was none of the draft model's."""
        guess = sequence.guess
        if guess is None or not guess.pending:
            return False
        guess.pending = 0
        self._counters["drafted_by_model"] += drafted
        self._counters["accepted_by_model"] += accepted
        guess.note(drafted, accepted, accepted * self._saved - drafted * self._spent)
        if guess.proven:
            self._judge(paid=True)
        return True

    # Details

    def _worth_showing(self, sequence: Sequence, seconds: float, gain: float) -> bool:
        """Whether to show the draft model what it does not know of a sequence: that may be a whole prompt."""
        missing = self.drafting.missing(sequence)
        if missing <= _FEW_TOKENS:
            return True
        budget = _VENTURE * seconds * sequence.generated
        if self.trusted:
            budget = gain * min(sequence.draftable, max(_HORIZON, sequence.generated))
        return self.drafting.seconds_to_show(missing) <= budget

    def _judge(self, *, paid: bool) -> None:
        self._proven |= paid
        self._losses = 0 if paid else min(self._losses + 1, _MOST_LOSSES)
