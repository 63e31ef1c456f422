"""Compare served tokens/s with the bare llama.cpp loop, on the same GGUF, threads and samplers.

For every number of slots N a server (`onegpu serve`) and a bare loop are started, each in a process
of its own and both loaded throughout; then pairs of runs alternate: bare, served, bare, served, …

Both sides work on N sequences with the same prompts, sample with the same chain and ignore
end-of-generation tokens. What counts is the steady decode phase, in which all N sequences generate:
bare, the time of the decode steps after all prompts are computed; served, from the moment when the
last of the N streams shows its first token to the moment when the first of them shows its last,
with the tokens that all of them showed in between, seen by a client process over HTTP.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import bare, client
from bench.common import Job, Load
from bench.processes import Server, Worker

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = ROOT / "build" / "bench" / "qwen3-0.6b-Q4_K_M.gguf"
TARGETS = {1: 0.95, 4: 0.95, 16: 0.90}


@dataclass(frozen=True)
class Row:
    """The outcome for one number of slots; tokens/s."""

    slots: int
    bare: list[float]
    served: list[float]

    @property
    def ratio(self) -> float:
        """Median of the pairs' ratios: a slow spell of the machine touches both halves of a pair."""
        return statistics.median(s / b for s, b in zip(self.served, self.bare, strict=True))

    @property
    def target(self) -> float | None:
        """What served / bare must reach."""
        return TARGETS.get(self.slots)


def measure(load: Load, job: Job, pairs: int) -> Row:
    """Run `pairs` alternating pairs with `load.slots` sequences."""
    outcome = Row(load.slots, [], [])
    with Server(load) as server, Worker(bare.__file__) as loop:
        loop.ask(asdict(load) | {"model": str(load.model)})
        server.wait_ready()
        for number in range(-1, pairs):
            bare_rate = loop.ask(asdict(job))["rate"]
            with Worker(client.__file__) as clients:
                asked = asdict(job) | {"port": server.port, "slots": load.slots}
                served_rate = clients.ask(asked)["rate"]
            label = "warm-up" if number < 0 else f"pair {number + 1}/{pairs}"
            print(
                f"{load.slots:>2} slots, {label}: bare {bare_rate:.1f}, served {served_rate:.1f}",
                file=sys.stderr,
            )
            if number >= 0:
                outcome.bare.append(bare_rate)
                outcome.served.append(served_rate)
    return outcome


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out for people."""
    lines = ["slots   bare tok/s   served tok/s   served / bare   target"]
    for row in rows:
        verdict = ""
        if row.target is not None:
            verdict = f"{row.target:.0%} {'reached' if row.ratio >= row.target else 'MISSED'}"
        lines.append(
            f"{row.slots:>5}   {statistics.median(row.bare):>10.1f}   "
            f"{statistics.median(row.served):>12.1f}   {row.ratio:>13.1%}   {verdict}"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a GGUF file")
    parser.add_argument("--pairs", type=int, default=5, help="pairs per row (default 5)")
    parser.add_argument(
        "--slots", default="1,4,16", help="numbers of sequences, with commas (default 1,4,16)"
    )
    parser.add_argument(
        "--tokens", type=int, default=128, help="generated per sequence and run (default 128)"
    )
    parser.add_argument("--prompt", type=int, default=64, help="words of a prompt (default 64)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--greedy", action="store_true", help="temperature 0 for both sides")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser.parse_args()


def main() -> int:
    """Measure every row and print the table; 1 when a target is missed."""
    arguments = parse()
    if not arguments.model.exists():
        if arguments.model != DEFAULT_MODEL:
            sys.exit(f"{arguments.model} does not exist.")
        import make_synthetic_gguf  # noqa: PLC0415 - needs the gguf package, which only this needs

        print(f"writing {DEFAULT_MODEL.name} …", file=sys.stderr)
        make_synthetic_gguf.write("qwen3-0.6b", DEFAULT_MODEL)
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"the machine is busy (load {busy:.1f}): do not trust the figures", file=sys.stderr)
    job = Job(tokens=arguments.tokens, words=arguments.prompt, greedy=arguments.greedy)
    rows = []
    for slots in (int(part) for part in arguments.slots.split(",")):
        load = Load(arguments.model, slots, arguments.threads, n_ctx=job.room)
        rows.append(measure(load, job, arguments.pairs))
    print(f"{arguments.model.name}, {arguments.threads} threads, {job.describe()}")
    print(table(rows))
    if arguments.json:
        document = [asdict(row) | {"ratio": row.ratio, "target": row.target} for row in rows]
        arguments.json.write_text(json.dumps({"job": asdict(job), "rows": document}, indent=2))
    return int(any(row.target is not None and row.ratio < row.target for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
