"""Tokens/s of one stream with drafts and without, in the 0.6B shape: where text repeats, and where it never does.

Both run in one process over one loaded model, in turn: without, with, without, with, … Each keeps what it learned
about step times from run to run, as a server does; the first run of each does not count. Files are written when they
are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import make_synthetic_gguf
from server.core.clock import SystemClock
from server.core.events import Delta, Event
from server.core.request import GenerationRequest, SamplingParams
from server.engine.limits import SchedulerLimits
from server.engine.loop import EngineLoop
from server.llama.backend import LlamaBackend
from server.llama.model import load_model
from server.llama.native import library
from server.llama.params import LlamaParams
from synthetic.rounds import follow, successors
from synthetic.shapes import find_shape

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"
SHAPE = "qwen3-0.6b"
ROUND = 150
"""Tokens after which the text repeats itself."""
SLOTS, N_CTX = 4, 4096
REPEATS, NEVER = 1.5, 0.98
"""What the ratios must reach."""
ACCEPTED = 0.9


@dataclass(frozen=True)
class Outcome:
    """Both ways on one text; tokens/s."""

    text: str
    target: float
    without: list[float]
    drafting: list[float]
    drafted: int
    accepted: int

    @property
    def ratio(self) -> float:
        """Median of the pairs' ratios: a slow spell of the machine touches both halves of a pair."""
        pairs = zip(self.drafting, self.without, strict=True)
        return statistics.median(one / other for one, other in pairs)

    @property
    def reached(self) -> bool:
        """Whether the target is, and nearly all came true of what was drafted of text that repeats."""
        trusted = self.target < 1 or self.accepted >= ACCEPTED * self.drafted
        return self.ratio >= self.target and trusted


class Side:
    """One way to serve the model: an engine's loop of its own, stepped in this thread."""

    def __init__(self, backend: LlamaBackend, draft_rows: int) -> None:
        """Nothing is learned yet."""
        limits = SchedulerLimits(
            slots=SLOTS,
            n_ctx=N_CTX,
            kv_cells=SLOTS * N_CTX,
            draft_rows=draft_rows,
        )
        self._backend = backend
        self._times: list[float] = []
        self.loop = EngineLoop(
            lambda _progress: backend, limits, SystemClock(), self._publish, lambda _state: None
        )
        self.loop.load()

    def rate(self, request: GenerationRequest) -> float:
        """Answer it and return tokens/s behind the first token."""
        self._times.clear()
        self.loop.submit(request)
        while self.loop.step():
            pass
        for slot in range(SLOTS):  # the other side finds the same memory
            self._backend.truncate(slot, 0)
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    def counted(self, name: str) -> int:
        """Return one of the engine's counters."""
        scheduler = self.loop.scheduler
        return 0 if scheduler is None else scheduler.counters[name]

    def _publish(self, events: list[tuple[str, Event]]) -> None:
        now = time.perf_counter()
        self._times += [now for _, event in events if isinstance(event, Delta) and event.token_ids]


def measure(
    text: str, model: Path, target: float, request: GenerationRequest, asked: argparse.Namespace
) -> Outcome:
    """Run pairs on one model."""
    params = LlamaParams(
        model, slots=SLOTS, n_ctx=N_CTX, draft_rows=asked.max_draft, threads=asked.threads
    )
    backend = LlamaBackend(load_model(library(), params, lambda _fraction: None), params)
    without, drafting = Side(backend, 0), Side(backend, asked.max_draft)
    rates: tuple[list[float], list[float]] = [], []
    for number in range(-1, asked.pairs):
        pair = [
            side.rate(
                GenerationRequest(
                    f"{text}-{number}",
                    request.prompt,
                    asked.tokens,
                    request.sampling,
                    reuse_prefix=False,
                    ignore_eos=True,
                )
            )
            for side in (without, drafting)
        ]
        print(f"{text}, run {number + 1}: {pair[0]:.1f}, {pair[1]:.1f} tok/s", file=sys.stderr)
        if number >= 0:
            for kept, rate in zip(rates, pair, strict=True):
                kept.append(rate)
    backend.shutdown()
    return Outcome(text, target, *rates, drafting.counted("drafted"), drafting.counted("accepted"))


def table(outcomes: Sequence[Outcome]) -> str:
    """Lay the outcomes out for people."""
    lines = ["text       without tok/s   with tok/s   with / without   accepted / drafted   target"]
    for one in outcomes:
        rates = (
            f"{statistics.median(one.without):>13.1f}   {statistics.median(one.drafting):>10.1f}"
        )
        came_true = f"{one.accepted} / {one.drafted}"
        verdict = f"{one.target:.2f} {'reached' if one.reached else 'MISSED'}"
        lines.append(f"{one.text:<8}   {rates}   {one.ratio:>14.2f}   {came_true:>18}   {verdict}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3, help="pairs per text (default 3)")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer (default 256)")
    parser.add_argument(
        "--max-draft", type=int, default=32, help="as engine.max_draft (default 32)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=["repeats", "never"], help="one of the texts")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser.parse_args()


def file(name: str, rounds: int | None) -> Path:
    """Return a model's file; write it if it is not there."""
    path = FOLDER / name
    if not path.exists():
        print(f"writing {name} …", file=sys.stderr)
        make_synthetic_gguf.write(SHAPE, path, rounds=rounds)
    return path


def main() -> int:
    """Measure both and print the table; 1 when a target is missed."""
    asked = parse()
    _, shape = find_shape(SHAPE)
    around = follow(successors(shape.n_vocab, ROUND).tolist(), 1000, ROUND + 10)
    greedy, drawn = SamplingParams(temperature=0), SamplingParams(seed=1)
    outcomes = []
    if asked.only != "never":
        path = file(f"{SHAPE}-rounds-{ROUND}-Q4_K_M.gguf", ROUND)
        request = GenerationRequest("", around, 1, greedy)
        outcomes.append(measure("repeats", path, REPEATS, request, asked))
    if asked.only != "repeats":
        path = file(f"{SHAPE}-Q4_K_M.gguf", None)
        request = GenerationRequest("", around, 1, drawn)
        outcomes.append(measure("never", path, NEVER, request, asked))
    print(
        f"{SHAPE}, {asked.threads} threads, {asked.tokens} tokens, drafts of at most {asked.max_draft}"
    )
    print(table(outcomes))
    if asked.json:
        document = [asdict(one) | {"ratio": one.ratio} for one in outcomes]
        asked.json.write_text(json.dumps(document, indent=2))
    return int(not all(one.reached for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
