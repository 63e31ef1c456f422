"""Tokens/s of four streams whose answers must fit a JSON Schema, beside four that may say anything.

Both in one process over one loaded model, in turn: free, bound, free, bound, … with the same seeds and lengths, once
with `top_k` (llama.cpp's samplers) and once without (arrays). Then what a guide takes per token in the engine's thread,
and what a schema of 100 fields takes to compile. The model's weights may be random: no answer comes to its end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from server.core.clock import SystemClock
from server.core.events import Delta
from server.core.request import Constraint, GenerationRequest, SamplingParams
from server.engine.grammar import GrammarSource
from server.engine.interface import Backend
from server.engine.limits import SchedulerLimits
from server.engine.loop import EngineLoop
from server.llama.grammar import LlamaGrammars
from server.llama.guide import Guide, Masks
from server.llama.loading import load_backend
from server.llama.params import LlamaParams

STREAMS, PROMPT, N_CTX = 4, 32, 512
ITEM = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 9999},
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["alpha", "beta", "gamma"]},
        "note": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["id", "name", "kind", "note", "tags"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": ITEM, "minItems": 1000}
FIELDS = {
    f"field_{number}": {"type": ["string", "integer", "boolean", "number"][number % 4]}
    for number in range(100)
}
WIDE = {
    "type": "object",
    "properties": FIELDS,
    "required": list(FIELDS),
    "additionalProperties": False,
}
SAMPLERS = {
    "top_k 40, top_p 0.95: llama.cpp's": {"top_k": 40, "top_p": 0.95},
    "no top_k: arrays": {},
}


def source(schema: dict[str, object]) -> GrammarSource:
    """Return `schema` as a grammar's source."""
    return GrammarSource("json_schema", json.dumps(schema))


def run(
    backend: Backend, sampling: dict[str, float], tokens: int, constraint: Constraint | None
) -> float:
    """Return tokens/s of `STREAMS` answers of `tokens` tokens, prompts not counted."""
    limits = SchedulerLimits(slots=STREAMS, n_ctx=N_CTX, kv_cells=STREAMS * N_CTX)
    told: list[Delta] = []
    loop = EngineLoop(
        lambda _progress: backend,
        limits,
        SystemClock(),
        lambda events: told.extend(event for _, event in events if isinstance(event, Delta)),
        lambda _state: None,
    )
    loop.load()
    for number in range(STREAMS):
        prompt = [
            int(token) for token in np.random.default_rng(number).integers(1000, 9000, PROMPT)
        ]
        backend.truncate(number, 0)
        params = SamplingParams(temperature=0.8, seed=number, **sampling)  # type: ignore[arg-type]
        free = constraint is None
        loop.submit(
            GenerationRequest(
                f"r{number}", prompt, tokens, params, constraint=constraint, ignore_eos=free
            )
        )
    while len(told) < STREAMS:
        loop.step()
    begin, first = time.perf_counter(), len(told)
    while loop.has_work:
        loop.step()
    seconds = time.perf_counter() - begin
    if len(told) != STREAMS * tokens:
        message = f"{len(told)} tokens came, not {STREAMS * tokens}: an answer ended early"
        raise SystemExit(message)
    return (len(told) - first) / seconds


def guided(backend: Backend, tokens: int) -> list[float]:
    """Return milliseconds of CPU that a guide takes per token, along random text that fits."""
    masks = Masks(backend.tokenizer)
    grammar = backend.tokenizer.grammars.compile(source(ENDLESS))
    random, taken = np.random.default_rng(1), []
    n_vocab = backend.tokenizer.n_vocab
    guide, token = Guide(masks, 1, None, Constraint(grammar), {}), 0
    for position in range(tokens):
        logits = random.normal(0, 4, n_vocab).astype(np.float32)
        begin = time.thread_time()
        guide.take(position, token)
        guide.restrict(logits)
        taken.append((time.thread_time() - begin) * 1e3)
        token = int(logits.argmax())
    return sorted(taken)


def report(backend: Backend, rounds: int, tokens: int) -> None:
    """Measure and print."""
    constraint = Constraint(backend.tokenizer.grammars.compile(source(ENDLESS)))
    print(f"tokens/s of {STREAMS} streams, {tokens} tokens each: free, bound, ratio of pairs")
    for name, sampling in SAMPLERS.items():
        run(backend, sampling, 8, constraint)
        pairs = [
            (run(backend, sampling, tokens, None), run(backend, sampling, tokens, constraint))
            for _ in range(rounds)
        ]
        free, bound = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for other, one in pairs)
        print(f"  {name:34} {free:6.1f} {bound:6.1f}   {ratio:.3f}", flush=True)
    taken = guided(backend, 1000)
    middle, last = statistics.median(taken), taken[int(len(taken) * 0.99)]
    print(
        f"a guide's CPU per token: mean {statistics.fmean(taken):.3f}, p50 {middle:.3f}, p99 {last:.3f} ms"
    )
    begin = time.perf_counter()
    grammars = LlamaGrammars(backend.tokenizer)
    print(f"vocabulary for grammars, once per load: {time.perf_counter() - begin:.2f} s")
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        grammars.compile(source(WIDE))
        seconds.append((time.perf_counter() - begin) * 1e3)
    print(f"100 fields: compiled, first masks too {seconds[0]:.1f} ms, then {seconds[1]:.3f} ms")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    params = LlamaParams(options.model, slots=STREAMS, n_ctx=N_CTX)
    backend = load_backend(params)(lambda _fraction: None)
    try:
        report(backend, options.rounds, options.tokens)
    finally:
        backend.shutdown()


if __name__ == "__main__":
    main()
