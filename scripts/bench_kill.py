"""Kill the worker of `onegpu serve` under load, again and again, and count what clients see.

Prints a tally; the exit status is 1 when something was refused or lost, or was left behind. Linux
only, loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from bench.kill import ROOT, tally
from server.bench.statistics import percentile


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo.gguf")
    parser.add_argument("--users", type=int, default=60, help="connections that ask all the time")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument(
        "--pause", type=float, default=12.0, help="seconds of service before each kill"
    )
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    seen = asyncio.run(
        tally(
            options.model,
            users=options.users,
            kills=options.kills,
            pause=options.pause,
            slots=options.slots,
        )
    )
    met = sum(seen.cut.values())
    good = sum(one.outcome.good for one in seen.requests)
    longest = max((one.end - one.begin for one in seen.requests), default=0.0)
    first = seen.first_answers()
    print(f"{options.users} connections, {len(seen.kills)} kills with SIGKILL")
    print(f"requests                       {len(seen.requests)}, {good} answered in full")
    print(f"refused connections            {seen.refused}")
    print(f"lost without a kill            {dict(seen.lost) or 0}")
    print(f"under way at a kill            {met}: {dict(seen.cut.most_common())}")
    print(f"longest request                {longest:.1f} s")
    print(f"kill to first token, seconds   {' '.join(f'{one:.2f}' for one in first)}")
    print(f"  of these to load the model   {percentile(seen.loads[1:], 0.5):.2f} s (median)")
    print(f"exit status, processes left    {seen.status}, {seen.orphans or 0}")
    bad = seen.refused or seen.lost or seen.orphans or seen.status
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
