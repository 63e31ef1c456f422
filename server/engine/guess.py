"""How much the draft model is believed about one sequence."""

from __future__ import annotations

_HOPE, _HOPE_WEIGHT = 0.97, 2.0
"""Part of the tokens that is taken to come true before any was seen, and how many tokens seen count as much."""
_KEEP = 1 - 1 / 64
"""Weight of what was seen, for each token that is tried later."""
_PROVEN = 8.0
"""Tokens tried after which a draft model that pays counts as a good one."""
_PAUSE = 4
"""Tokens without a draft after the first trial that did not pay; twice as many after each further one."""
_MOST_DOUBLINGS = 8
_FIRST_PLAIN = 3
"""Tokens of a first answer without a draft: what steps take without one has to be known."""


class Guess:
    """One sequence's, for as long as it lives."""

    __slots__ = (
        "_hits",
        "_tried",
        "losses",
        "most",
        "net",
        "paused_until",
        "pending",
        "possible",
    )

    def __init__(self, length: int, losses: int = 0, *, trusted: bool = False) -> None:
        """Begin with a sequence of `length` tokens. `losses`: of other sequences; `trusted`: it paid for some."""
        self._hits = self._tried = 0.0
        self.losses = losses
        """Trials that did not pay, less those that did."""
        self.net = 0.0
        """Seconds that drafts have saved, less what they took."""
        self.paused_until = length + (
            0 if trusted else _FIRST_PLAIN if not losses else _PAUSE << losses
        )
        """Nothing is drafted for a shorter sequence."""
        self.most = 1
        """Rows of the next draft at most."""
        self.pending = 0
        """Rows of this step's draft."""
        self.possible = True
        """False: the sequence has tokens that the draft model does not know."""

    @property
    def chance(self) -> float:
        """Probability that the next token comes true, if those before it did."""
        return (self._hits + _HOPE_WEIGHT * _HOPE) / (self._tried + _HOPE_WEIGHT)

    @property
    def proven(self) -> bool:
        """Whether enough was tried to say that drafts pay, and they do."""
        return self._tried >= _PROVEN and self.net > 0

    def ready(self, length: int) -> bool:
        """Whether a sequence of `length` tokens may have a draft."""
        return self.possible and length >= self.paused_until

    def note(self, drafted: int, accepted: int, seconds: float) -> None:
        """Learn what came of a draft: tokens behind the first that did not come true were not tried.

        `seconds`: what it saved, less what it took.
        """
        tried = accepted + (accepted < drafted)
        keep = _KEEP**tried
        self._hits = keep * self._hits + accepted
        self._tried = keep * self._tried + tried
        self.net += seconds
        if accepted == drafted:
            self.most = max(self.most, 2 * drafted)

    def rest(self, length: int) -> bool | None:
        """End a trial: a sequence of `length` tokens pauses, then hopes again. Return whether drafts have paid so far.

        None: nothing was tried, or too little to say that they pay.
        """
        if not self._tried:
            return None
        proven, paid = self.proven, self.net >= 0
        self.losses = max(0, self.losses - 1) if paid else min(self.losses + 1, _MOST_DOUBLINGS)
        self.paused_until = length + (_PAUSE << self.losses)
        self._hits = self._tried = 0.0
        self.most = 1
        return paid if proven or not paid else None
