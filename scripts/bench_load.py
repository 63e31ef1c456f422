"""What a server does under more load than it can take.

40 and 60 connections, ten times its capacity, a greedy key beside a modest one, the policies' cost.

By default over an engine that computes nothing but takes time (bench/paced.py), so that what is
measured is this server; with --model over llama.cpp. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

import uvloop

from bench import paced
from bench.load_client import Asked, ask, closed_loop, codes, obedient, open_loop, well_formed
from server.bench.client import Outcome
from server.bench.statistics import percentile as p
from server.store.connection import open_database
from server.store.keys import KeyRepository

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")


class Served:
    """A server process on a free port."""

    def __init__(self, options: argparse.Namespace, **settings: object) -> None:
        """`settings`: ONEGPU_ and PACED_ variables."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        model = options.model or ROOT / "models" / "demo.gguf"
        given = {
            "ONEGPU_MODEL__PATH": model,
            "ONEGPU_MODEL__NAME": "bench",
            "ONEGPU_ENGINE__SLOTS": options.slots,
            "ONEGPU_ENGINE__N_CTX": 1024,
            "ONEGPU_GATEWAY__MAX_QUEUE": 64,
            "ONEGPU_SERVER__PORT": self.port,
            "ONEGPU_SERVER__ACCESS_LOG": "false",
            "ONEGPU_SERVER__SUPERVISED": "false",  # the process that is measured is the one that serves
            "ONEGPU_LOGGING__LEVEL": "error",
            "PACED_STEP_MS": options.step_ms,
            **settings,
        }
        command = [sys.executable, paced.__file__]
        if options.model:
            command = [sys.executable, "-m", "server", "serve"]
        environ = os.environ | {name: str(value) for name, value in given.items()}
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
        self._process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, cwd=ROOT)

    def __enter__(self) -> Self:
        """Wait until it is ready."""
        end = time.monotonic() + 120
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5):
                    return self
            except (URLError, OSError):
                time.sleep(0.1)
        self.__exit__()
        raise RuntimeError("the server did not get ready")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of the serving process."""
        return self._process.pid

    @property
    def rss(self) -> float:
        """Resident memory in MiB."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def rate(outcomes: list[Outcome], seconds: float) -> float:
    """Tokens per second of whole answers."""
    return sum(one.tokens for one in outcomes if one.good) / seconds


async def timed(work: object) -> tuple[list[Outcome], float]:
    """Return outcomes and the seconds they took."""
    begin = time.perf_counter()
    outcomes: list[Outcome] = await work  # type: ignore[misc]
    return outcomes, time.perf_counter() - begin


async def load(options: argparse.Namespace) -> None:
    """Compare 40 and 60 connections."""
    firsts = {}
    print("connections   answers   not 200   resets   first token p50   p95      tok/s   refusals")
    for users in (40, 60):
        with Served(options) as server:
            asked = Asked(server.port, "bench", options.tokens)
            outcomes, took = await timed(closed_loop(asked, users, options.seconds))
        bad, resets = sum(not o.good for o in outcomes), sum(o.status == 0 for o in outcomes)
        times = [one.first for one in outcomes if one.good]
        firsts[users] = p(times, 0.95)
        print(
            f"{users:>11}   {len(outcomes):>7}   {bad / len(outcomes):>6.2%}   {resets:>6}   "
            f"{p(times, 0.5):>13.2f} s   {firsts[users]:.2f} s   {rate(outcomes, took):>6.1f}"
            f"   {codes(outcomes)}"
        )
    limit = 1.25 * (60 - options.slots) / (40 - options.slots)
    print(f"p95(60) / p95(40) = {firsts[60] / firsts[40]:.2f} (at most {limit:.2f})")


async def surge(options: argparse.Namespace) -> None:
    """Ask ten times what can be served; then obedient clients."""
    with Served(options) as server:
        asked = Asked(server.port, "bench", options.tokens)
        full, took = await timed(closed_loop(asked, 2 * options.slots, options.seconds))
        capacity, before = sum(o.good for o in full) / took, server.rss
        flood, spent = await timed(open_loop(asked, 10 * capacity, options.seconds))
        after = server.rss
        late = await obedient(asked, 40)
    share = rate(flood, spent) / rate(full, took)
    print(f"saturated: {rate(full, took):.1f} tok/s, {capacity:.1f} requests/s")
    print(f"10×: {len(flood)} requests, {rate(flood, spent):.1f} tok/s, {share:.1%} (least 95 %)")
    print(f"     refusals: {codes(flood)}")
    print(f"     resets {sum(o.status == 0 for o in flood)}, malformed refusals ", end="")
    print(f"{sum(not well_formed(o) for o in flood)}, memory {before:.0f} → {after:.0f} MiB")
    print(f"obedient clients afterwards: {sum(o.good for o in late)} of {len(late)} succeed")


async def fairness(options: argparse.Namespace) -> None:
    """Let a key with one request at a time work beside one with fifty."""
    with tempfile.TemporaryDirectory() as data:
        keys = make_keys(Path(data), "greedy", "modest")
        with Served(options, ONEGPU_DATA_DIR=data) as server:
            modest = Asked(server.port, "bench", options.tokens, key=keys["modest"])
            greedy = Asked(server.port, "bench", options.tokens, key=keys["greedy"])
            alone = await closed_loop(modest, 1, min(5.0, options.seconds))
            others = asyncio.create_task(closed_loop(greedy, 50, options.seconds + 2))
            await asyncio.sleep(1)
            mine = await closed_loop(modest, 1, options.seconds)
            flood = await others
    service = p([one.total - one.first for one in flood if one.good], 0.95)
    prefill = p([one.first for one in alone], 0.5)
    reached = p([one.first for one in mine if one.good], 0.95)
    limit = 1.2 * (service + prefill) + prefill
    print(f"greedy key (50 at once): first token p95 {p([o.first for o in flood], 0.95):.2f} s")
    print(f"modest key (1 at once):  first token p95 {reached:.2f} s over {len(mine)} requests")
    print(f"at most 1.2 × service p95 ({service + prefill:.2f} s) + prefill = {limit:.2f} s")


async def overhead(options: argparse.Namespace) -> None:
    """Compare a server without keys and limits with one that has both, at 50 requests/s."""
    asked_rate, medians = 50.0, {}
    options.step_ms, options.slots = 1, 16
    for name in ("off", "on"):
        with tempfile.TemporaryDirectory() as data:
            key, policies = "", {}
            if name == "on":
                key = make_keys(Path(data), "bench")["bench"]
                policies = {
                    "ONEGPU_GATEWAY__RATE_LIMIT__REQUESTS_PER_MINUTE": 100000,
                    "ONEGPU_GATEWAY__RATE_LIMIT__TOKENS_PER_MINUTE": 100000000,
                    "ONEGPU_GATEWAY__RATE_LIMIT__MAX_CONCURRENT": 1000,
                }
            with Served(options, ONEGPU_DATA_DIR=data, **policies) as server:
                asked = Asked(server.port, "bench", 8, key=key)
                for number in range(50):
                    await ask(asked, number)
                begin, used = time.perf_counter(), server.cpu
                outcomes = await open_loop(asked, asked_rate, options.seconds)
                core = (server.cpu - used) / (time.perf_counter() - begin)
        times = [one.total * 1e3 for one in outcomes if one.good]
        medians[name] = statistics.median(times)
        print(
            f"policies {name:>3}: p50 {medians[name]:.2f} ms, p95 {p(times, 0.95):.2f} ms, "
            f"{core:.1%} of a core, {len(times)} of {len(outcomes)} whole"
        )
    print(f"difference of the medians: {medians['on'] - medians['off']:.2f} ms (under 1 ms)")


def make_keys(directory: Path, *names: str) -> dict[str, str]:
    """Return secrets by name."""
    with open_database(directory) as database:
        keys = KeyRepository(database)
        return {name: keys.create(name, time.time()).secret for name in names}


def main() -> None:
    """Run what was asked for."""
    runs = {"load": load, "surge": surge, "fairness": fairness, "overhead": overhead}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", choices=[*runs, []], help="default: all")
    parser.add_argument("--model", type=Path, help="a GGUF, for llama.cpp in place of waiting")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--step-ms", type=float, default=10.0, help="of the waiting engine")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    options = parser.parse_args()
    for name in options.run or runs:
        print(f"\n== {name}", flush=True)
        uvloop.run(runs[name](argparse.Namespace(**vars(options))))


if __name__ == "__main__":
    main()
