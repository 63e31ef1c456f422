"""How much is computed in each run of a tuning: what the time allows."""

from __future__ import annotations

from dataclasses import replace

from server.assembly.engine import scheduler_limits
from server.assembly.sizing import Sized
from server.engine.trial import Rates, Workload

_DEPTHS = (2048, 1024, 512, 256, 128, 64, 32)
_DOCUMENTS = (4096, 2048, 1024, 512, 256, 128)
"""Tokens of the prompt that is computed in pieces."""
_MOST_RUN, _LEAST_RUN = 8.0, 1.0
"""Seconds of one run."""
_MOST_STEPS, LEAST_STEPS = 48, 4


def workload(one: Sized, depth: int, steps: int) -> Workload:
    """Return work in the chunks of a context."""
    return Workload(one.sizes.slots, depth, steps, scheduler_limits(one))


def fitting(one: Sized, rates: Rates, seconds: float) -> Workload:
    """Return the largest work that takes about `seconds`: most of it for the prompts' depth."""
    seconds = min(max(seconds, _LEAST_RUN), _MOST_RUN)
    steps = int(seconds * 0.35 / _generating(one.sizes.slots, rates))
    steps = min(max(steps, LEAST_STEPS), _MOST_STEPS)
    works = [workload(one, depth, steps) for depth in _DEPTHS]
    fit = [work for work in works if fits(work, one)]
    short = fit[-1] if fit else workload(one, min(64, one.sizes.n_ctx // 2), LEAST_STEPS)
    return next((work for work in fit if seconds_of(work, rates) <= seconds), short)


def with_document(one: Sized, rates: Rates, seconds: float) -> Workload:
    """Return work with the longest document that takes about `seconds`, beside streams of short contexts."""
    seconds = min(max(seconds, _LEAST_RUN), _MOST_RUN)
    short = workload(one, min(64, one.sizes.n_ctx // 4), 0)
    works = [replace(short, document=tokens) for tokens in _DOCUMENTS]
    fit = [work for work in works if fits(work, one)] or [replace(short, document=short.depth)]
    return next((work for work in fit if seconds_of(work, rates) <= seconds), fit[-1])


def fits(work: Workload, one: Sized) -> bool:
    """Tell whether a context has room for it."""
    sizes = one.sizes
    return work.cells <= sizes.n_ctx and work.cells * work.streams <= sizes.kv_cells


def _generating(streams: int, rates: Rates) -> float:
    """Return what a step of one stream and one of all take."""
    if rates.single is None or rates.all is None:
        raise AssertionError("the calibration measures all")
    return 1 / rates.single + streams / rates.all


def seconds_of(work: Workload, rates: Rates) -> float:
    """Estimate what a run takes, from rates at a lesser depth."""
    last = work.document or work.depth
    beside = last / rates.beside if rates.beside else 0.0
    prompts = max(1, work.streams - 1) * work.depth / rates.prefill
    if work.document:
        return prompts + last / rates.prefill + beside
    return prompts + beside + (work.steps + 1) * _generating(work.streams, rates)
