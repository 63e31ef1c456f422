"""Measuring a backend: how fast it reads prompts and generates. Prompts are cut as the scheduler cuts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from server.core.clock import Clock
from server.core.request import GenerationRequest
from server.engine.detokenizer import Detokenizer
from server.engine.interface import Backend
from server.engine.limits import SchedulerLimits
from server.engine.pace import Pace, Work
from server.engine.plan import DecodeCode, Rows, StepPlan
from server.engine.prefill import Prefill
from server.engine.prefix_index import ALIGN
from server.engine.sequence import Sequence as Running


@dataclass(frozen=True, slots=True)
class Workload:
    """What is computed. Each stream takes up to `cells` cells."""

    streams: int
    depth: int
    """Tokens of each stream's prompt."""
    steps: int
    """Decode steps that are timed, of one stream and of all."""
    limits: SchedulerLimits
    """As in the server: they decide how many rows of a prompt a step has."""
    document: int = 0
    """Tokens of a prompt that is computed alone, and once more beside the other streams; instead of all else."""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Undo `dataclasses.asdict`."""
        return cls(**{**document, "limits": SchedulerLimits(**document["limits"])})

    @property
    def cells(self) -> int:
        """Cells that a stream may come to use: its prompt, what it generates, the steps before the clock runs."""
        longest = max(self.depth, self.document)
        return longest + 2 * (self.steps + 1) + -(-longest // ALIGN) + 2


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second. What a workload does not have is None."""

    prefill: float
    """Of prompts, while nothing decodes."""
    beside: float | None = None
    """Of a prompt beside all other streams."""
    single: float | None = None
    """Of one stream at the workload's depth."""
    all: float | None = None
    """Of all streams together at that depth."""
    slowest: float | None = None
    """Of a stream over its longest gap beside the document."""


class TrialFailed(Exception):
    """A decode call failed, or a sample did."""


def measure(backend: Backend, work: Workload, clock: Clock) -> Rates:
    """Compute `work` in slots 0 … streams-1, which must be free; they are free again afterwards.

    Raises `TrialFailed`.
    """
    run = _Run(backend, work, clock)
    try:
        return run.prompts() if work.document else run.rates()
    finally:
        for slot in range(work.streams):
            backend.close(slot)
            backend.truncate(slot, 0)


class _Run:
    def __init__(self, backend: Backend, work: Workload, clock: Clock) -> None:
        self._backend = backend
        self._work = work
        self._clock = clock
        calls = backend.info.calls
        self._pace = Pace(calls.tile_rows)
        self._prefill = Prefill(work.limits, self._pace, calls)

    def rates(self) -> Rates:
        work = self._work
        first, *others = [self._open(slot, work.depth) for slot in range(work.streams)]
        self._warm(first)
        before = first.computed
        seconds = self._compute(first)
        single = work.steps / self._decode([first])
        for one in others[:-1]:
            seconds += self._compute(one)
        prompts = max(1, work.streams - 1) * work.depth - before
        beside = self._beside(others[-1], [first, *others[:-1]])[0] if others else None
        together = work.streams * work.steps / self._decode([first, *others])
        return Rates(prompts / seconds, beside, single, together)

    def prompts(self) -> Rates:
        """Measure what the cutting of prompts changes: the document, and the streams beside it."""
        work, last = self._work, self._work.streams - 1
        streams = [self._open(slot, work.depth) for slot in range(last)]
        for one in streams:
            self._compute(one)
        document = self._open(last, work.document)
        self._warm(document)
        rows = document.remaining
        rate = rows / self._compute(document)
        if not streams:
            return Rates(rate)
        self._backend.close(last)
        self._backend.truncate(last, 0)
        beside, gap = self._beside(self._open(last, work.document), streams)
        return Rates(rate, beside, slowest=1 / gap)

    def _open(self, slot: int, depth: int) -> Running:
        tokenizer = self._backend.tokenizer
        # Nobody reads these samples; an end-of-generation token is one like all others.
        prompt = list(_prompt(slot, depth, tokenizer.n_vocab))
        request = GenerationRequest(f"trial-{slot}", prompt, self._work.cells)
        self._backend.open(slot, request)
        sequence = Running(request, Detokenizer(tokenizer.pieces), self._clock.monotonic())
        sequence.slot = sequence.turn = slot
        return sequence

    def _warm(self, sequence: Running) -> None:
        """Compute some rows untimed: the first call at a size builds its graph and touches pages."""
        self._step([Rows(sequence.slot, 0, sequence.tokens[:ALIGN], outputs=0)], [sequence])

    def _compute(self, sequence: Running) -> float:
        """Compute what is left of a prompt; return seconds."""
        begin = self._clock.monotonic()
        while not sequence.generated:
            rows = self._prefill.rows([sequence], Counter(), (), 0)
            self._step(rows, [sequence])
        return self._clock.monotonic() - begin

    def _beside(self, last: Running, streams: Sequence[Running]) -> tuple[float, float]:
        """Compute a prompt while others decode; return its tokens per second and their longest gap in seconds."""
        begin = token = self._clock.monotonic()
        ended, gap, streamed = begin, 0.0, True
        while not last.generated or not streamed:  # a gap ends with a token
            rows = [_decode_row(one) for one in streams]
            cells, unfinished, streamed = (
                sum(row.start + 1 for row in rows),
                not last.generated,
                True,
            )
            if unfinished:
                planned = self._prefill.step([last], Counter(), rows, partial(int, cells), 0)
                rows, streamed = planned[0], planned[1] > 0
            self._step(rows, [*streams, last])
            now = self._clock.monotonic()
            ended = now if unfinished else ended
            if streamed:
                gap, token = max(gap, now - token), now
        return last.prompt_length / (ended - begin), gap

    def _decode(self, sequences: Sequence[Running]) -> float:
        """Generate in all; return the seconds of all steps but the first."""
        self._step([_decode_row(one) for one in sequences], sequences)
        begin = self._clock.monotonic()
        for _ in range(self._work.steps):
            self._step([_decode_row(one) for one in sequences], sequences)
        return self._clock.monotonic() - begin

    def _step(self, rows: list[Rows], sequences: Sequence[Running]) -> None:
        by_slot = {one.slot: one for one in sequences}
        decoding = sum(by_slot[row.slot].decoding for row in rows)
        prefilling = sum(len(row.tokens) for row in rows) - decoding
        before = self._clock.monotonic()
        result = self._backend.decode(StepPlan(rows, decoding, prefilling))
        if result.code is not DecodeCode.OK:
            raise TrialFailed(f"a decode call ended with {result.code.name}")
        self._pace.observe(Work.of(rows), self._clock.monotonic() - before)
        samples = iter(result.samples)
        for row in rows:
            sequence = by_slot[row.slot]
            sequence.computed += len(row.tokens)
            if row.outputs:
                (sample,) = next(samples)
                if sample.error is not None:
                    raise TrialFailed(sample.error.message)
                sequence.tokens.append(sample.token)


def _decode_row(sequence: Running) -> Rows:
    return Rows(sequence.slot, sequence.computed, sequence.tokens[-1:], outputs=1)


def _prompt(slot: int, length: int, n_vocab: int) -> Iterator[int]:
    """Yield tokens all over the vocabulary: experts and pages are used as a text would."""
    for position in range(length):
        yield (7919 * (position + 1) * (slot + 1) + 31 * slot) % n_vocab
