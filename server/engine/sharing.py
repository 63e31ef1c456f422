"""Sequences that wait for a prefix which another one computes, in place of computing it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from server.engine.plan import MemoryEdit
from server.engine.prefix_index import Match
from server.engine.sequence import Sequence
from server.engine.slots import SlotPool


class Followers:
    """Running sequences with a leader: they have slot and reservation, and plan no rows.

    A leader was admitted before its followers, so there is always somebody who computes.
    """

    def __init__(self, pool: SlotPool, counters: Counter[str]) -> None:
        """Nobody follows yet."""
        self._pool = pool
        self._counters = counters
        self._waiting: list[Sequence] = []
        """In order of admission."""

    def admit(self, sequence: Sequence, match: Match) -> None:
        """Let a sequence wait for what was found, if somebody computes it."""
        sequence.leader, sequence.awaited = match.leader, match.awaited
        if match.leader is not None:
            self._counters["prefix_waits"] += 1
            self._waiting.append(sequence)

    def behind(self) -> Counter[Sequence]:
        """Count, for each leader, who waits for it, and for those; what runs in the background does not count."""
        counts: Counter[Sequence] = Counter()
        for sequence in self._waiting:
            leader = None if sequence.background else sequence.leader
            while leader is not None:
                counts[leader] += 1
                leader = leader.leader
        return counts

    def advance(self) -> Iterator[MemoryEdit]:
        """Hand over what leaders have computed; one that died leaves what it has, and its place, to the first.

        Each edit is carried out before the next one is asked for: a copy may fail.
        """
        self._waiting = [one for one in self._waiting if one.running and one.leader is not None]
        for sequence in list(self._waiting):
            leader = sequence.leader
            if leader is not None and leader.running and leader.computed < sequence.awaited:
                continue
            match = self._pool.find(sequence)
            sequence.leader, sequence.awaited = match.leader, match.awaited
            if match.leader is not None:
                continue
            self._waiting.remove(sequence)
            if match.source is not None:
                yield from self._pool.share(sequence, match.source, match.cells)
                self._counters["cached_tokens"] += sequence.computed
            sequence.cached = sequence.computed
