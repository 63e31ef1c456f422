"""What it brings to move cells down in the unified layout: one real tail of a burst, or many simulated loads.

    python scripts/bench_moving.py serve MODEL.gguf      documents end, one answer goes on; engine and model, no HTTP
    python scripts/bench_moving.py simulate --slots 4,16  the scheduler over a stand-in that knows cells and prices

Each load runs without moving and with it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.cells import PricedBackend
from server.core.clock import Clock, SystemClock
from server.core.events import Event
from server.core.request import GenerationRequest, SamplingParams
from server.engine.host_memory import HostBudget
from server.engine.interface import Backend
from server.engine.limits import SchedulerLimits
from server.engine.loop import EngineLoop
from server.llama.loading import load_backend
from server.llama.params import LlamaParams

N_CTX = 4096
HOST = 8 << 30
COLD_STEPS = 32
"""As on a CPU."""


@dataclass(frozen=True)
class Job:
    """A request."""

    at: float
    """Seconds after the beginning."""
    prompt: list[int]
    tokens: int


class FastClock:
    """Goes on when it is told."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.now = 0.0

    def monotonic(self) -> float:
        """Return seconds."""
        return self.now

    def wall(self) -> float:
        """Return the same."""
        return self.now


def engine(backend: Backend, slots: int, clock: Clock, *, moving: bool) -> EngineLoop:
    """Make a loop without a thread."""
    limits = SchedulerLimits(
        slots=slots,
        n_ctx=N_CTX,
        kv_cells=slots * N_CTX,
        prefill_rows_decoding=512,
        reuse_align=1,
        cold_steps=COLD_STEPS,
    )

    def ignored(_events: list[tuple[str, Event]]) -> None:
        return

    loop = EngineLoop(
        lambda _progress: backend, limits, clock, ignored, lambda _state: None, HostBudget(HOST)
    )
    loop.load()
    if not moving and loop.edits is not None:
        loop.edits.moving = None
    return loop


def loads(slots: int) -> Iterator[tuple[str, list[Job]]]:
    """Yield loads by name."""
    dice = random.Random(1)

    def prompt(length: int, head: tuple[int, ...] = ()) -> list[int]:
        return [*head, *(dice.randrange(256) for _ in range(length))]

    system = tuple(prompt(1400))
    agents = [tuple(prompt(1000)) for _ in range(8)]
    share = slots // 4
    yield "short", [Job(dice.uniform(0, 60), prompt(40), 80) for _ in range(40 * share)]
    kinds = [(60, (), 64), (40, system, 64), (2600, (), 96)]
    mixed = []
    for _ in range(60 * share):
        ((length, head, tokens),) = dice.choices(kinds, [6, 3, 1])
        mixed.append(Job(dice.uniform(0, 200), prompt(length, head), tokens))
    yield "mixed", mixed
    yield "agents", [Job(dice.uniform(0, 60), prompt(30, system), 48) for _ in range(12 * share)]
    yield "rotate", [Job(2.0 * turn, prompt(30, agents[turn % 8]), 48) for turn in range(40)]
    documents = [Job(0, prompt(2500), 64) for _ in range(slots - 1)]
    yield "documents, then one long answer", [*documents, Job(1, prompt(200), 1500)]
    burst = [
        Job(0, prompt(dice.randrange(50, 3000)), dice.choice([32, 64, 200, 1000]))
        for _ in range(2 * slots)
    ]
    yield "burst of unlike lengths", burst
    bursts = [
        Job(120.0 * number, prompt(dice.randrange(50, 2500)), dice.choice([32, 64, 200, 800]))
        for number in range(4)
        for _ in range(slots)
    ]
    yield "bursts with pauses", bursts


def simulate(slots: int) -> None:
    """Print what each load takes."""
    for name, jobs in loads(slots):
        found = []
        for moving in (False, True):
            clock = FastClock()
            backend = PricedBackend(slots, slots * N_CTX, clock)
            loop = engine(backend, slots, clock, moving=moving)
            left = sorted(jobs, key=lambda job: job.at)
            number = 0
            while left or loop.has_work:
                while left and left[0].at <= clock.now:
                    job = left.pop(0)
                    loop.submit(GenerationRequest(f"r{number}", job.prompt, job.tokens))
                    number += 1
                if not loop.step() and left:
                    clock.now = max(clock.now, left[0].at)
            counters = loop.scheduler.counters if loop.scheduler else {}
            copies = counters["moved_cells"] * 2 * backend.copy_seconds
            found.append((backend.busy + copies, backend.gaps, counters["moved_cells"]))
        (busy, gaps, _), (less, fewer, cells) = found
        print(
            f"{slots:2} slots {name:32} {busy:6.1f} s of steps, {gaps / busy:5.1%} for gaps; moving "
            f"{cells:6} cells: {less / busy - 1:+5.1%}, {fewer / less:5.1%} for gaps"
        )


def serve(model: Path, threads: int, tokens: int) -> None:
    """Print what steps of the tail take, without moving and with it."""
    slots = 4
    params = LlamaParams(
        model,
        slots=slots,
        n_ctx=N_CTX,
        layout="unified",
        flash_attention="on",
        threads=threads,
        threads_batch=threads,
    )
    backend = load_backend(params)(lambda _fraction: None)
    for moving in (False, True):
        loop = engine(backend, slots, SystemClock(), moving=moving)
        dice = random.Random(2)
        greedy = SamplingParams(temperature=0.0)
        for name, length, most in (
            ("a", 1200, 8),
            ("b", 1200, 8),
            ("c", 1200, 8),
            ("q", 100, tokens),
        ):
            prompt = [dice.randrange(1, 150_000) for _ in range(length)]
            loop.submit(GenerationRequest(name, prompt, most, greedy, ignore_eos=True))
        seconds: list[float] = []
        while loop.has_work:
            before = time.perf_counter()
            loop.step()
            seconds.append(time.perf_counter() - before)
        counters = loop.scheduler.counters if loop.scheduler else {}
        tail = seconds[-tokens // 2 :]
        print(
            f"moving {moving!s:5} {counters['moved_cells']:4} cells; the last {len(tail)} steps: "
            f"median {statistics.median(tail) * 1e3:.1f} ms"
        )
        for slot in range(slots):
            backend.close(slot)
            backend.truncate(slot, 0)
    backend.shutdown()


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    real = commands.add_parser("serve")
    real.add_argument("model", type=Path)
    real.add_argument("--threads", type=int, default=2)
    real.add_argument("--tokens", type=int, default=300)
    stand_in = commands.add_parser("simulate")
    stand_in.add_argument("--slots", default="4,16")
    options = parser.parse_args()
    if options.command == "serve":
        serve(options.model, options.threads, options.tokens)
        return
    for slots in map(int, options.slots.split(",")):
        simulate(slots)


if __name__ == "__main__":
    main()
