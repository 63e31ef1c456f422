"""Measuring a backend: how fast it reads prompts and generates, without a scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.core.clock import Clock
from server.core.request import GenerationRequest
from server.engine.interface import Backend
from server.engine.plan import DecodeCode, Rows, StepPlan

_CUT = 8
"""Chunks end at multiples of it, as the scheduler's do."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is computed. Each stream takes up to `cells` cells."""

    streams: int
    depth: int
    """Tokens of each stream's prompt."""
    steps: int
    """Decode steps that are timed, of one stream and of all."""
    chunk: int
    """Most prompt rows of a step while nothing decodes."""
    chunk_decoding: int
    """Most prompt rows of a step while others decode."""

    @property
    def cells(self) -> int:
        """Cells that a stream may come to use: its prompt, what it generates, the steps before the clock runs."""
        return self.depth + 2 * (self.steps + 1) + -(-self.depth // _CUT) + 1


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second."""

    prefill: float
    """Of prompts, while nothing decodes."""
    beside: float | None
    """Of a prompt beside all other streams; None for one stream."""
    single: float
    """Of one stream at the workload's depth."""
    all: float
    """Of all streams together at that depth."""


class TrialFailed(Exception):
    """A decode call failed, or a sample did."""


def measure(backend: Backend, work: Workload, clock: Clock) -> Rates:
    """Compute `work` in slots 0 … streams-1, which must be free; they are free again afterwards.

    Raises `TrialFailed`.
    """
    run = _Run(backend, work, clock)
    try:
        return run.rates()
    finally:
        for slot in range(work.streams):
            backend.close(slot)
            backend.truncate(slot, 0)


class _Run:
    def __init__(self, backend: Backend, work: Workload, clock: Clock) -> None:
        self._backend = backend
        self._work = work
        self._clock = clock
        self._tokens: list[list[int]] = [[] for _ in range(work.streams)]
        self._held = [0] * work.streams

    def rates(self) -> Rates:
        work = self._work
        for slot in range(work.streams):
            self._tokens[slot] = list(_prompt(slot, work.depth, self._backend.tokenizer.n_vocab))
            # Nobody reads these samples; an end-of-generation token is one like all others.
            request = GenerationRequest(f"trial-{slot}", self._tokens[slot], work.cells)
            self._backend.open(slot, request)
        # Untimed: the first call at a size builds its graph and touches pages.
        self._step([self._prefill_rows(0, _CUT)])
        before = self._held[0]
        seconds = self._prefill(0)
        single = work.steps / self._decode([0])
        for slot in range(1, max(1, work.streams - 1)):
            seconds += self._prefill(slot)
        prompts = max(1, work.streams - 1) * work.depth - before
        beside = self._prefill_beside() if work.streams > 1 else None
        everyone = list(range(work.streams))
        together = work.streams * work.steps / self._decode(everyone)
        return Rates(prompts / seconds, beside, single, together)

    def _prefill(self, slot: int) -> float:
        """Compute what is left of the slot's prompt; return seconds."""
        begin = self._clock.monotonic()
        while self._held[slot] < self._work.depth:
            self._step([self._prefill_rows(slot, self._work.chunk)])
        return self._clock.monotonic() - begin

    def _prefill_beside(self) -> float:
        """Compute the last prompt while all others decode; return its tokens per second."""
        last = self._work.streams - 1
        begin = self._clock.monotonic()
        while self._held[last] < self._work.depth:
            rows = [self._decode_row(slot) for slot in range(last)]
            self._step([*rows, self._prefill_rows(last, self._work.chunk_decoding)])
        return self._work.depth / (self._clock.monotonic() - begin)

    def _decode(self, slots: list[int]) -> float:
        """Generate in `slots`; return the seconds of all steps but the first."""
        self._step([self._decode_row(slot) for slot in slots])
        begin = self._clock.monotonic()
        for _ in range(self._work.steps):
            self._step([self._decode_row(slot) for slot in slots])
        return self._clock.monotonic() - begin

    def _prefill_rows(self, slot: int, most: int) -> Rows:
        start, tokens = self._held[slot], self._tokens[slot]
        end = min(start + most, self._work.depth)
        if end < self._work.depth:
            end = end // _CUT * _CUT
        return Rows(slot, start, tokens[start:end], outputs=int(end == self._work.depth))

    def _decode_row(self, slot: int) -> Rows:
        return Rows(slot, self._held[slot], self._tokens[slot][-1:], outputs=1)

    def _step(self, rows: list[Rows]) -> None:
        decoding = sum(row.start >= self._work.depth for row in rows)
        prefilling = sum(len(row.tokens) for row in rows) - decoding
        result = self._backend.decode(StepPlan(rows, decoding, prefilling))
        if result.code is not DecodeCode.OK:
            raise TrialFailed(f"a decode call ended with {result.code.name}")
        samples = iter(result.samples)
        for row in rows:
            self._held[row.slot] += len(row.tokens)
            if row.outputs:
                (sample,) = next(samples)
                if sample.error is not None:
                    raise TrialFailed(sample.error.message)
                self._tokens[row.slot].append(sample.token)


def _prompt(slot: int, length: int, n_vocab: int) -> Iterator[int]:
    """Yield tokens all over the vocabulary: experts and pages are used as a text would."""
    for position in range(length):
        yield (7919 * (position + 1) * (slot + 1) + 31 * slot) % n_vocab
