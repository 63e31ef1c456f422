"""A bare scheduler for tests of the backend: whoever has rows to compute gets them into the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from server.core.request import GenerationRequest, SamplingParams
from server.engine.plan import DecodeCode, Rows, Sample, StepPlan
from server.llama.backend import LlamaBackend
from server.llama.logits import floats_at

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Running:
    """One sequence: its tokens so far, of which the backend holds the first ones."""

    tokens: list[int]
    n_prompt: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def said(self) -> list[int]:
        return self.tokens[self.n_prompt :]


class Driver:
    """Starts sequences in slots and steps them."""

    def __init__(self, backend: LlamaBackend) -> None:
        self.backend = backend
        self.running: dict[int, Running] = {}

    def start(
        self,
        slot: int,
        prompt: Sequence[int],
        sampling: SamplingParams = GREEDY,
        *,
        keep: int = 0,
        share: tuple[int, int] | None = None,
        **request: Any,
    ) -> Running:
        """`keep`: cells of the slot that stay; `share`: another slot, and how many of its cells this one has, too."""
        self.backend.truncate(slot, keep)
        if share is not None:
            self.backend.copy(share[0], slot, share[1])
        asked = GenerationRequest(f"r{slot}", tuple(prompt), 1000, sampling, **request)
        self.backend.open(slot, asked)
        self.running[slot] = Running(list(prompt), len(prompt))
        return self.running[slot]

    def cancel(self, slot: int) -> None:
        del self.running[slot]
        self.backend.close(slot)
        self.backend.truncate(slot, 0)

    def step(self, chunk: int = 10_000) -> DecodeCode:
        """Decode what each sequence has not computed yet, at most `chunk` tokens of each."""
        planned = []
        for slot, sequence in sorted(self.running.items()):
            held = self.backend.cells(slot)
            tokens = sequence.tokens[held : held + chunk]
            planned.append(
                Rows(slot, held, tokens, int(held + len(tokens) == len(sequence.tokens)))
            )
        result = self.backend.decode(StepPlan(planned))
        samples = iter(result.samples)
        for rows in planned:
            if rows.outputs and result.code is DecodeCode.OK:
                (sample,) = next(samples)
                self.running[rows.slot].samples.append(sample)
                if sample.error is None:
                    self.running[rows.slot].tokens.append(sample.token)
        return result.code

    def run(self, steps: int, chunk: int = 10_000) -> None:
        for _ in range(steps):
            assert self.step(chunk) is DecodeCode.OK

    def alone(self, prompt: Sequence[int], count: int, slot: int = 0, **start: Any) -> list[int]:
        """Generate `count` tokens with nothing beside, in a fresh slot."""
        sequence = self.start(slot, prompt, **start)
        while len(sequence.said) < count:
            assert self.step() is DecodeCode.OK
        self.cancel(slot)
        return sequence.said

    def native_cells(self, slot: int) -> int:
        """Count a slot's cells as llama.cpp does."""
        backend = self.backend
        return backend._library.memory_seq_pos_max(backend._memory, slot) + 1

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        """Copy the logits of a row of the last batch."""
        row = self.backend._library.get_logits_ith(self.backend._context, index)
        assert row
        return floats_at(row, self.backend._n_vocab).copy()

    def prefill_logits(
        self, prompts: Sequence[Sequence[int]], cuts: Sequence[int] = ()
    ) -> npt.NDArray[np.float32]:
        """Compute prompts side by side, cut at the same positions, and return the first's logits.

        What slot 0 holds already is kept.
        """
        edges = [*cuts, max(len(prompt) for prompt in prompts)]
        index = 0
        for edge in edges:
            planned = []
            for slot, prompt in enumerate(prompts):
                held = self.backend.cells(slot)
                tokens = list(prompt[held:edge])
                if tokens:
                    planned.append(Rows(slot, held, tokens, int(held + len(tokens) == len(prompt))))
            index = len(planned[0].tokens) - 1
            assert self.backend.decode(StepPlan(planned)).code is DecodeCode.OK
        return self.logits(index)


def prompt_of(seed: int, length: int, n_vocab: int = 250) -> list[int]:
    """Return random ordinary tokens."""
    return [int(token) for token in np.random.default_rng(seed).integers(1, n_vocab, length)]
