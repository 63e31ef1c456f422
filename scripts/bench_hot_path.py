"""What this server's own code costs: a chat's way in, and the engine thread's work beside the C calls.

Way in: parse the body, render the template, tokenize about 500 tokens, admit and submit, with the
real model's vocabulary and template; one chat at a time, the engine idle before each.
Engine thread: scheduler, batch, sampling wrappers, detokenizer and events, with C calls that return
at once, so that what is left is Python. Draws without `top_k` from 152,000 tokens, by llama.cpp and by arrays.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import statistics
import time
from pathlib import Path
from typing import Any

from bench.decision import decisions
from bench.draws import draws
from server.api.body import parse_model
from server.api.schemas.chat import ChatRequest
from server.assembly.parts import Parts, build
from server.core.clock import SystemClock
from server.core.request import GenerationRequest, SamplingParams
from server.engine.limits import SchedulerLimits
from server.engine.loop import EngineLoop
from server.gateway.principal import Principal
from server.gateway.spec import GenerationSpec
from server.llama.backend import LlamaBackend
from server.llama.model import load_model
from server.llama.native import Library, library
from server.llama.params import LlamaParams
from server.settings import ModelSettings, Settings

ROOT = Path(__file__).resolve().parent.parent
PROMPT_TOKENS = 500


class FreeLibrary:
    """The real bindings, but the calls of a step return at once: what is left is Python."""

    def __init__(self, real: Library, n_vocab: int, token: int) -> None:
        """Every output row has the same logits, every sample is `token`."""
        self._real = real
        self._logits = (ctypes.c_float * n_vocab)()
        self._address = ctypes.addressof(self._logits)
        self._token = token

    def __getattr__(self, name: str) -> Any:
        """Leave everything else as it is."""
        return getattr(self._real, name)

    def decode(self, *_: object) -> int:
        """Succeed."""
        return 0

    def get_logits_ith(self, *_: object) -> int:
        """Return the address of the logits."""
        return self._address

    def sampler_sample(self, *_: object) -> int:
        """Return the token."""
        return self._token


async def chat_body(parts: Parts) -> bytes:
    """Return a chat of a few turns that renders to about `PROMPT_TOKENS` tokens."""
    sentence = "The slots of a pool are shared by all requests that run at the same time. "
    async with parts.service.using(None, Principal()) as (served, lease):
        words = sentence * (PROMPT_TOKENS // len(lease.tokenizer.encode(sentence)) // 2)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": words},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": words},
    ]
    return json.dumps({"model": served.agent.name, "messages": messages, "max_tokens": 1}).encode()


async def way_in(parts: Parts, rounds: int) -> tuple[int, list[float]]:
    """Return the prompt's tokens and the seconds of each round."""
    body = await chat_body(parts)
    seconds, tokens = [], 0
    for number in range(rounds):
        begin = time.perf_counter()
        request = parse_model(body, ChatRequest)
        spec = GenerationSpec(
            request_id=f"bench-{number}",
            model=request.model,
            prompts=[request.prompt()],
            max_tokens=request.output_limit(),
            sampling=request.sampling(),
            stop=request.stops(),
        )
        generation = await parts.service.open(spec)
        seconds.append(time.perf_counter() - begin)
        tokens = generation.prompt_tokens
        async for _batch in generation.events():
            pass
        generation.close()
    return tokens, seconds


def engine_step(model: Path, streams: int, steps: int) -> float:
    """Return seconds of Python per stream and step, scheduler and backend together."""
    limits = SchedulerLimits(slots=streams, n_ctx=1024, kv_cells=streams * 1024)
    params = LlamaParams(model, slots=streams, n_ctx=limits.n_ctx, kv_type="q4_0", warmup=False)
    backend = LlamaBackend(load_model(library(), params, lambda _fraction: None), params)
    token = backend.tokenizer.encode("a")[0]
    free = FreeLibrary(backend._library, backend.info.n_vocab, token)  # noqa: SLF001
    for part in (backend, backend._outputs):  # noqa: SLF001
        vars(part)["_library"] = free
    loop = EngineLoop(
        lambda _progress: backend,
        limits,
        SystemClock(),
        lambda _events: None,
        lambda _state: None,
    )
    loop.load()
    sampling = SamplingParams(top_k=40)  # so that the token comes from the library
    for number in range(streams):
        loop.submit(GenerationRequest(f"r{number}", [token], 1000, sampling))
    for _ in range(10):
        loop.step()
    begin = time.perf_counter()
    for _ in range(steps):
        loop.step()
    seconds = time.perf_counter() - begin
    backend.shutdown()
    return seconds / steps / streams


async def measure(model: Path, rounds: int) -> None:
    """Print both tables."""
    parts = build(Settings(model=ModelSettings(path=model)), SystemClock(), Path)
    try:
        await report(parts, model, rounds)
    finally:
        await parts.hosts.stop()
        parts.service.shutdown()


async def report(parts: Parts, model: Path, rounds: int) -> None:
    """Measure and print; the model must stay loaded until both are done."""
    tokens, seconds = await way_in(parts, rounds)
    ranked = sorted(seconds)
    print(f"way in, chat of {tokens} tokens, {rounds} rounds (target: p50 under 3 ms)")
    print(f"  p50 {statistics.median(ranked) * 1e3:6.2f} ms")
    print(f"  p95 {ranked[int(len(ranked) * 0.95)] * 1e3:6.2f} ms")
    print("engine thread, Python per stream and step (target: at most 25 µs)")
    for streams in (1, 4, 16, 64):
        print(f"  {streams:3} streams {engine_step(model, streams, 500) * 1e6:6.2f} µs")
    print("scheduling decision, a request comes to a prefix that all share (targets: 400 µs, 2 ms)")
    for slots in (64, 256):
        ranked = sorted(decisions(slots, rounds))
        p95 = ranked[int(len(ranked) * 0.95)]
        print(
            f"  {slots:3} slots   p50 {statistics.median(ranked) * 1e6:5.0f} µs, p95 {p95 * 1e6:5.0f} µs"
        )
    print("a draw without top_k from 151,936 tokens: llama.cpp's samplers, and arrays")
    for name, chained, arrays in draws(rounds):
        print(f"  {name:27}  {chained * 1e3:5.2f} ms   {arrays * 1e3:5.2f} ms")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo.gguf")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    asyncio.run(measure(options.model, options.rounds))


if __name__ == "__main__":
    main()
