"""What a token may cost in this server's own code: nothing that grows with the history or with the vocabulary."""

from __future__ import annotations

import statistics
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from server.core.clock import SystemClock
from server.core.events import Delta
from server.core.request import GenerationRequest, SamplingParams
from server.engine.limits import SchedulerLimits
from server.engine.loop import EngineLoop
from server.llama.loading import load_backend
from server.llama.logprobs import LogprobReader
from server.llama.params import LlamaParams
from tests.models import ModelSpec

N_VOCAB = 150_000
FEW = 16 * 1024
"""Bytes: far less than a byte for each token of a vocabulary of 20,000, or eight for each of a history of 3,000."""


def peak(work: Callable[[], object]) -> int:
    """Bytes that `work` had at most beyond what was there before."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    work()
    return tracemalloc.get_traced_memory()[1] - before


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("top", [0, 5, 20])
def test_log_probabilities_take_no_memory_of_the_vocabularys_size(traced, top) -> None:
    reader = LogprobReader(N_VOCAB)
    logits = np.random.default_rng(1).normal(size=N_VOCAB).astype(np.float32)
    # numpy sums float32 in float64 through a buffer of 8192.
    assert peak(lambda: reader.read(logits, 7, top)) < 8192 * 8 + FEW


@pytest.mark.native
@pytest.mark.parametrize("logprobs", [None, 3])
def test_a_step_takes_no_memory_of_the_vocabularys_or_the_historys_size(
    models, traced, logprobs
) -> None:
    pieces = tuple(b"<%d>" % number for number in range(20_000))
    spec = ModelSpec(
        extra_pieces=pieces, embedding=32, layers=1, feed_forward=32, heads=1, kv_heads=1
    )
    params = LlamaParams(models.path(spec), slots=2, n_ctx=4096, threads=1, warmup=False)
    loop = _loop(params)
    for number in range(2):
        prompt = [(7 * at * at + number) % 250 + 1 for at in range(3000)]
        loop.submit(_endless(f"r{number}", prompt, logprobs))
    deltas = 0
    while deltas < 4:
        loop.step()
        deltas += len(loop.told)
        loop.told.clear()
    peaks = [peak(loop.step) for _ in range(60)]
    loop.stop()
    loop._shutdown()
    # A table that grows by doubling does so now and then; no step needs it.
    assert statistics.median(peaks) < FEW + (8192 * 8 if logprobs else 0)


def test_a_step_does_as_much_at_token_3000_as_at_token_30() -> None:
    loop = _scripted()
    for number in range(4):
        loop.submit(_endless(f"r{number}", list(range(1, 9 + number)), None))
    while loop.scheduler.counters["generated_tokens"] < 4 * 30:
        loop.step()
    early = _work(loop)
    while loop.scheduler.counters["generated_tokens"] < 4 * 3000:
        loop.step()
    late = _work(loop)
    # A few more or less, as predictions come true or not.
    assert late.calls <= 1.1 * early.calls
    assert late.touched <= early.touched < 4 * 40


def test_one_step_is_told_of_in_one_go() -> None:
    loop = _scripted(slots=16)
    for number in range(16):
        loop.submit(_endless(f"r{number}", [1, 2, 3 + number], None))
    while loop.scheduler.counters["generated_tokens"] < 32:
        loop.step()
    steps, told = loop.scheduler.counters["steps"], loop.publications
    for _ in range(50):
        loop.step()
    assert loop.scheduler.counters["steps"] - steps == 50
    assert loop.publications - told == 50
    assert sum(isinstance(event, Delta) for _, event in loop.told[-16:]) == 16


class _Told(EngineLoop):
    """Keeps what it publishes, and how often."""

    def __init__(self, load, limits) -> None:
        self.told: list = []
        self.publications = 0
        super().__init__(load, limits, SystemClock(), self._take, lambda _state: None)

    def _take(self, events) -> None:
        self.publications += 1
        self.told += events


class _Counting(list):
    """A list of tokens that counts how many are looked at."""

    touched = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        _Counting.touched += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self):
        _Counting.touched += len(self)
        return super().__iter__()


class _Effort:
    def __init__(self, calls: int, touched: int) -> None:
        self.calls, self.touched = calls, touched


def _work(loop: _Told) -> _Effort:
    """Calls of functions, and tokens of histories that are looked at, in the median of some steps."""
    for sequence in loop.scheduler.running:
        if not isinstance(sequence.tokens, _Counting):
            sequence.tokens = _Counting(sequence.tokens)
    efforts = [_effort(loop) for _ in range(9)]
    return _Effort(
        int(statistics.median(one.calls for one in efforts)),
        int(statistics.median(one.touched for one in efforts)),
    )


def _effort(loop: _Told) -> _Effort:
    calls = 0

    def count(_frame, what, _argument) -> None:
        nonlocal calls
        calls += what in ("call", "c_call")

    loop.told.clear()
    _Counting.touched = 0
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        loop.step()
    finally:
        sys.setprofile(before)
    return _Effort(calls, _Counting.touched)


def _endless(request_id: str, prompt: list[int], logprobs: int | None) -> GenerationRequest:
    room = 4096 - len(prompt)
    sampling = SamplingParams(temperature=1.0, seed=1)
    return GenerationRequest(request_id, prompt, room, sampling, ignore_eos=True, logprobs=logprobs)


def _loop(params: LlamaParams) -> _Told:
    cells = params.slots * params.n_ctx
    limits = SchedulerLimits(slots=params.slots, n_ctx=params.n_ctx, kv_cells=cells)
    loop = _Told(load_backend(params), limits)
    loop.load()
    return loop


def _scripted(slots: int = 4) -> _Told:
    from tests.factories import ScriptedBackend

    limits = SchedulerLimits(slots=slots, n_ctx=4096, kv_cells=slots * 4096)
    calls = iter(range(10**9))

    def successor(_tokens) -> int:
        number = next(calls)
        return 32 + (number * number * 31 + number // 7) % 95

    loop = _Told(lambda _progress: ScriptedBackend(limits, successor=successor), limits)
    loop.load()
    return loop
