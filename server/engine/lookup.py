"""Prompt lookup: where a sequence says again what it said, or was told, before, it may go on as it did there."""

from __future__ import annotations

from collections.abc import Sequence

_ALIKE = 3
"""Tokens that must be alike before a continuation is believed."""
_GAIN = 1 / 16
"""Weight of the last prediction in `_rate`."""
_STRENGTH = 2.0
"""Predictions in a row that count as much as all that was learned before them."""


class Lookup:
    """Predicts each token of one sequence, and notes which predictions came true; nothing is computed for that.

    A dictionary from the last tokens to what came after them the last time: one entry per token, about 150 bytes,
    which is little beside the token's cell. A token takes about a microsecond, however many there are.
    """

    __slots__ = (
        "_continuations",
        "_indexed",
        "_next",
        "_rate",
        "_streak",
        "losses",
        "paused_until",
    )

    def __init__(self) -> None:
        """Know nothing; `index` and `push` tell."""
        self._continuations: dict[int, int] = {}
        """Hash of `_ALIKE` tokens → position of the one that followed them last."""
        self._indexed = _ALIKE
        """Positions before it are in `_continuations`."""
        self._next = -1
        """Position of the token that is predicted next; -1: none is."""
        self._streak = 0
        """Predictions in a row that came true."""
        self._rate = 0.5
        """Part of the predictions that came true, a moving average."""
        self.losses = 0
        """Drafts in a row that took longer than they saved."""
        self.paused_until = 0
        """Nothing is drafted for a shorter sequence."""

    @property
    def chance(self) -> float:
        """Probability that the next prediction comes true; 0 when there is none."""
        if self._next < 0:
            return 0.0
        return (self._streak + _STRENGTH * self._rate) / (self._streak + _STRENGTH)

    def backlog(self, tokens: Sequence[int]) -> int:
        """Count the tokens that are not taken in yet."""
        return max(0, len(tokens) - self._indexed)

    def index(self, tokens: Sequence[int], most: int) -> int:
        """Take in at most `most` tokens; return how many."""
        begin = self._indexed
        end = min(len(tokens), begin + most)
        if end <= begin:
            return 0
        part = tokens[begin - _ALIKE : end]
        positions = range(begin, end)
        heads = zip(positions, zip(part, part[1:], part[2:], strict=False), strict=False)
        self._continuations.update((hash(head), position) for position, head in heads)
        self._indexed = end
        return end - begin

    def push(self, tokens: Sequence[int]) -> None:
        """Note that the last one of `tokens` is new."""
        last, predicted = len(tokens) - 1, self._next
        if predicted >= 0:
            if tokens[predicted] == tokens[last]:
                self._streak += 1
                self._rate += _GAIN * (1 - self._rate)
                self._next = predicted + 1
            else:
                self._streak = 0
                self._rate -= _GAIN * self._rate
                self._next = -1
        if last < _ALIKE:
            return
        first, second, third, new = (
            tokens[last - 3],
            tokens[last - 2],
            tokens[last - 1],
            tokens[last],
        )
        if self._indexed == last:
            self._continuations[hash((first, second, third))] = last
            self._indexed = last + 1
        if self._next < 0:
            found = self._continuations.get(hash((second, third, new)), -1)
            # Hashes may be equal by accident.
            alike = found >= 0 and (second, third, new) == (*tokens[found - _ALIKE : found],)
            self._next = found if alike else -1

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return the next `most` tokens as they are predicted; what repeats is taken to go on repeating."""
        if self._next < 0:
            return []
        drafted = list(tokens[self._next : self._next + most])
        while len(drafted) < most:
            drafted += tokens[self._next : self._next + most - len(drafted)]
        return drafted
