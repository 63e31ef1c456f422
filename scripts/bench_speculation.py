"""Tokens/s of one stream with drafts and without, in the 0.6B shape: where text repeats, and where it never does.

Both run in one process over one loaded model, in turn: without, with, without, with, … Each keeps what it learned
about step times from run to run, as a server does; the first run of each does not count. Files are written when they
are missing.

With --draft, a draft model of that shape foresees what a bigger one (--main) says, in text that never repeats: one that
says the same, for one stream and for four, and one that is always wrong.
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
from server.engine.interface import Backend
from server.engine.limits import SchedulerLimits
from server.engine.loop import EngineLoop
from server.llama.loading import load_backend
from server.llama.params import DraftParams, FlashAttention, LlamaParams
from synthetic.rounds import follow, successors
from synthetic.shapes import find_shape

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"
SHAPE = "qwen3-0.6b"
ROUND = 150
"""Tokens after which the text repeats itself."""
LONG_ROUND = 4096
"""The same where it does not within an answer."""
SLOTS, N_CTX = 4, 4096
REPEATS, NEVER = 1.5, 0.98
FORESEEN, FULL, WRONG = 1.0, 0.95, 0.95
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

    def __init__(self, backend: Backend, draft_rows: int) -> None:
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

    def rate(self, requests: Sequence[GenerationRequest]) -> float:
        """Answer all at once and return tokens/s behind the first token."""
        self._times.clear()
        for request in requests:
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
    text: str,
    params: LlamaParams,
    target: float,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    asked: argparse.Namespace,
) -> Outcome:
    """Run pairs on one model; one stream for each prompt."""
    backend = load_backend(params)(lambda _fraction: None)
    without, drafting = Side(backend, 0), Side(backend, asked.max_draft)
    rates: tuple[list[float], list[float]] = [], []
    for number in range(-1, asked.pairs):
        requests = [
            GenerationRequest(
                f"{text}-{number}-{stream}",
                prompt,
                asked.tokens,
                sampling,
                reuse_prefix=False,
                ignore_eos=True,
            )
            for stream, prompt in enumerate(prompts)
        ]
        pair = [side.rate(requests) for side in (without, drafting)]
        print(f"{text}, run {number + 1}: {pair[0]:.1f}, {pair[1]:.1f} tok/s", file=sys.stderr)
        if number >= 0:
            for kept, rate in zip(rates, pair, strict=True):
                kept.append(rate)
    backend.shutdown()
    return Outcome(text, target, *rates, drafting.counted("drafted"), drafting.counted("accepted"))


def table(outcomes: Sequence[Outcome]) -> str:
    """Lay the outcomes out for people."""
    lines = [
        "text              without tok/s   with tok/s   with / without   accepted / drafted   target"
    ]
    for one in outcomes:
        rates = (
            f"{statistics.median(one.without):>13.1f}   {statistics.median(one.drafting):>10.1f}"
        )
        came_true = f"{one.accepted} / {one.drafted}"
        verdict = f"{one.target:.2f} {'reached' if one.reached else 'MISSED'}"
        lines.append(f"{one.text:<15}   {rates}   {one.ratio:>14.2f}   {came_true:>18}   {verdict}")
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
    parser.add_argument("--draft", metavar="SHAPE", help="measure a draft model instead")
    parser.add_argument("--main", metavar="SHAPE", default="qwen3-4b", help="its main model's")
    parser.add_argument(
        "--streams", type=int, nargs="*", default=[1, 4], help="with --draft (default 1 4)"
    )
    parser.add_argument("--layout", choices=["unified", "split"], default="unified")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser.parse_args()


def file(shape: str, rounds: int | None, seed: int = 0) -> Path:
    """Return a model's file; write it if it is not there."""
    name = shape + (f"-rounds-{rounds}" if rounds else "") + (f"-seed-{seed}" if seed else "")
    path = FOLDER / f"{name}-Q4_K_M.gguf"
    if not path.exists():
        print(f"writing {path.name} …", file=sys.stderr)
        make_synthetic_gguf.write(shape, path, rounds=rounds, seed=seed)
    return path


def parameters(model: Path, asked: argparse.Namespace, draft: Path | None = None) -> LlamaParams:
    """Return how a model is loaded: without flash attention in the split layout, as it is served on a CPU."""
    flash: FlashAttention = "off" if asked.layout == "split" else "on"
    beside = None
    if draft is not None:
        beside = DraftParams(draft, layout=asked.layout, flash_attention=flash)
    return LlamaParams(
        model,
        slots=SLOTS,
        n_ctx=N_CTX,
        layout=asked.layout,
        flash_attention=flash,
        draft_rows=asked.max_draft,
        draft=beside,
        threads=asked.threads,
    )


def measure_lookup(asked: argparse.Namespace) -> list[Outcome]:
    """Measure one stream that looks up: text that repeats, and text that never does."""
    _, shape = find_shape(SHAPE)
    prompts = [follow(successors(shape.n_vocab, ROUND).tolist(), 1000, ROUND + 10)]
    greedy, drawn = SamplingParams(temperature=0), SamplingParams(seed=1)
    outcomes = []
    if asked.only != "never":
        params = parameters(file(SHAPE, ROUND), asked)
        outcomes.append(measure("repeats", params, REPEATS, prompts, greedy, asked))
    if asked.only != "repeats":
        params = parameters(file(SHAPE, None), asked)
        outcomes.append(measure("never", params, NEVER, prompts, drawn, asked))
    return outcomes


def measure_draft(asked: argparse.Namespace) -> list[Outcome]:
    """Measure a draft model that says the same, by streams, and one that never does."""
    (main, shape), (draft, _) = find_shape(asked.main), find_shape(asked.draft)
    after = successors(shape.n_vocab, LONG_ROUND).tolist()
    greedy = SamplingParams(temperature=0)
    prompts = [follow(after, 1000 * stream, 20) for stream in range(1, SLOTS + 1)]
    model = file(main, LONG_ROUND)
    same = parameters(model, asked, file(draft, LONG_ROUND))
    other = parameters(model, asked, file(draft, LONG_ROUND, seed=1))
    outcomes = []
    if asked.only != "never":
        for streams in asked.streams:
            target = FORESEEN if streams == 1 else FULL
            text = f"foreseen, {streams}"
            outcomes.append(measure(text, same, target, prompts[:streams], greedy, asked))
    if asked.only != "repeats":
        outcomes.append(measure("wrong, 1", other, WRONG, prompts[:1], greedy, asked))
    return outcomes


def main() -> int:
    """Measure and print the table; 1 when a target is missed."""
    asked = parse()
    if asked.draft:
        outcomes, model = measure_draft(asked), f"{asked.main} with a draft model {asked.draft}"
    else:
        outcomes, model = measure_lookup(asked), SHAPE
    print(
        f"{model}, {asked.layout}, {asked.threads} threads, {asked.tokens} tokens, drafts of at most {asked.max_draft}"
    )
    print(table(outcomes))
    if asked.json:
        document = [asdict(one) | {"ratio": one.ratio} for one in outcomes]
        asked.json.write_text(json.dumps(document, indent=2))
    return int(not all(one.reached for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
