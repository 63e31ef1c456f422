"""What a draw from the whole vocabulary takes: llama.cpp's samplers beside arrays."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator

import llama_cpp
import numpy as np

from server.core.request import SamplingParams
from server.llama.drawing import Drawing, Floats, Workspace

VOCABULARY = 151_936
SPREAD = 5.0
"""Standard deviation of the logits: some thousand tokens have 95 % of all."""


def draws(rounds: int) -> Iterator[tuple[str, float, float]]:
    """Yield what was asked for, and medians in seconds: of llama.cpp's chain, of arrays."""
    logits = np.random.default_rng(0).normal(0, SPREAD, VOCABULARY).astype(np.float32)
    kinds = {
        "temperature 0.8": SamplingParams(temperature=0.8),
        "temperature 0.8, top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
        "temperature 0.8, min_p 0.05": SamplingParams(temperature=0.8, min_p=0.05),
    }
    for name, params in kinds.items():
        drawing = Drawing(Workspace(VOCABULARY), params, {}, 1)
        arrays = _median(lambda one=drawing: one.draw(logits), rounds)  # type: ignore[misc]
        yield name, _chained(params, logits, rounds), arrays


def _chained(params: SamplingParams, logits: Floats, rounds: int) -> float:
    """Time a chain as `llama_sampler_sample` uses it: it lists all candidates first."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    stages = [llama_cpp.llama_sampler_init_temp(params.temperature)]
    if params.min_p > 0:
        stages.insert(0, llama_cpp.llama_sampler_init_min_p(params.min_p, 1))
    if params.top_p < 1:
        stages.insert(0, llama_cpp.llama_sampler_init_top_p(params.top_p, 1))
    for stage in [*stages, llama_cpp.llama_sampler_init_dist(1)]:
        llama_cpp.llama_sampler_chain_add(chain, stage)
    candidates = (llama_cpp.llama_token_data * len(logits))()
    fields = np.frombuffer(
        memoryview(candidates).cast("B"), np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
    )
    ids = np.arange(len(logits))

    def draw() -> None:
        fields["id"], fields["logit"], fields["p"] = ids, logits, 0
        array = llama_cpp.llama_token_data_array(candidates, len(logits), -1, False)
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))

    try:
        return _median(draw, rounds)
    finally:
        llama_cpp.llama_sampler_free(chain)


def _median(act: Callable[[], object], rounds: int) -> float:
    act()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
