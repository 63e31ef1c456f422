"""`onegpu bench`: first tokens, gaps and tokens/s of OpenAI-compatible servers, one after the other."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.core.errors import ConfigError, OnegpuError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.bench.driver import Peer
    from server.bench.probe import Probed
    from server.bench.scenarios import Scenario
    from server.bench.session import Plan
    from server.bench.statistics import Measured
    from server.cli.chat.terminal import Terminal
    from server.cli.parsing import Commands

_DESCRIPTION = """\
Measure OpenAI-compatible servers with the same questions: each scenario runs on one URL after the
other, round after round (A B A B), and the first URL is compared with the others. Prints first
tokens, gaps between tokens and tokens/s, and writes all figures as JSON and a chart as SVG.

Questions come from a seed: the same for every server of a run, new in every round. Load nothing
else on the machines that are measured, and leave the servers as they would serve."""
_EXAMPLES = """\
examples:
  onegpu bench http://127.0.0.1:8000
  onegpu bench onegpu=http://127.0.0.1:8000 llama=http://127.0.0.1:8080 --scenarios short,short@16,agents
  onegpu bench mine=gpu-box:8000 other=https://host/v1 --key-from ONEGPU_KEY --key-from OTHER_KEY

Exit status: 0 done, 1 a server cannot be measured, 2 wrong usage, 130 interrupted or terminated (what was measured
is written)."""
_DEFAULT = "short,short@16,agents,rotate,turns,longdoc,mixed,overload,report-short,report-longdoc,report-tools"
_MOST_USERS, _MOST_ROUNDS = 1000, 100
_INTERRUPTED = 130


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    from server.bench.scenarios import SCENARIOS

    listed = "\n".join(f"  {one.name:<16}{one.about} [@{one.users}]" for one in SCENARIOS)
    parser = commands.add_parser(
        "bench",
        prog="onegpu bench",
        help="measure OpenAI-compatible servers side by side",
        description=_DESCRIPTION,
        epilog=f"scenarios, with their users:\n{listed}\n\n{_EXAMPLES}",
    )
    parser.set_defaults(run=run, parser=parser)
    add = parser.add_argument
    add("urls", nargs="+", metavar="[NAME=]URL", help="a server, and what to call it [HOST:PORT]")
    add(
        "--model",
        action="append",
        metavar="MODEL",
        help="its name there; once for all, or once for each URL [the one model that it has]",
    )
    add(
        "--key-from",
        action="append",
        metavar="VARIABLE",
        help="the environment variable with the key, - for none; once for all, or once for each URL "
        "[ONEGPU_KEY]",
    )
    add(
        "--scenarios",
        default=_DEFAULT,
        metavar="LIST",
        help="names with commas; NAME@USERS for another number of users [all, and short@16]",
    )
    add("--users", type=_whole(1, _MOST_USERS), metavar="N", help="for scenarios without @USERS")
    add("--rounds", type=_whole(1, _MOST_ROUNDS), default=2, metavar="N", help="of each row [2]")
    add(
        "--seed",
        type=_whole(0, 2**63),
        metavar="N",
        help="of the questions [another one each time: a server may still know yesterday's]",
    )
    add(
        "--tokens-per-word",
        type=float,
        metavar="X",
        help="how long words are, to repeat a run to the letter [measured on the first URL]",
    )
    add("--out", type=Path, metavar="PREFIX", help="of the .json and the .svg [bench-DATE-TIME]")
    add(
        "--request-limit",
        type=_whole(1, 86400),
        default=600,
        metavar="SECONDS",
        help="for one answer [600]",
    )
    add(
        "--row-limit",
        type=_whole(1, 86400),
        default=1200,
        metavar="SECONDS",
        help="for one scenario on one server [1200]",
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print and write. Raises `ConfigError` and `OnegpuError`."""
    import asyncio

    import uvloop

    from server.cli.bench_servers import peers_of
    from server.cli.chat.terminal import Terminal
    from server.settings.environment import read_environment

    scenarios = _scenarios(options)
    environment = read_environment()
    peers = peers_of(options, environment)
    written = _outputs(options.out)
    terminal = Terminal(sys.stderr, sys.stderr, environment)
    watcher = _Watcher(terminal)
    try:
        probed, plan = uvloop.run(_prepare(options, scenarios, peers, terminal))
    except KeyboardInterrupt:
        terminal.clear_status()
        return _INTERRUPTED
    interrupted = False
    try:
        uvloop.run(_play(plan, [one.peer for one in probed], watcher))
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
    terminal.clear_status()
    if watcher.all:
        _hand_over(plan, probed, watcher.all, written, terminal)
    if interrupted:
        return _INTERRUPTED
    answered = {one.server for one in watcher.all if any(o.good for o in one.outcomes)}
    return int(any(one.peer.label not in answered for one in probed))


async def _play(plan: Plan, peers: Sequence[Peer], watcher: _Watcher) -> None:
    """Play until SIGTERM or SIGINT; the latter is ignored in what a shell started in the background."""
    import asyncio
    import contextlib
    import signal

    from server.bench.session import run as play

    playing = asyncio.ensure_future(play(plan, peers, watcher))
    with contextlib.suppress(ValueError):  # outside the main thread signals are somebody else's
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    await playing


async def _prepare(
    options: argparse.Namespace,
    scenarios: Sequence[tuple[Scenario, int]],
    peers: Sequence[Peer],
    terminal: Terminal,
) -> tuple[list[Probed], Plan]:
    import time

    from server.bench.driver import Limits
    from server.bench.probe import probe, tokens_per_word
    from server.bench.session import Plan

    probed = [await probe(peer, terminal.status) for peer in peers]
    per_word = options.tokens_per_word or await tokens_per_word(probed[0])
    seed = int(time.time()) if options.seed is None else options.seed
    limits = Limits(float(options.request_limit), float(options.row_limit))
    terminal.clear_status()
    for one in probed:
        terminal.note(f"{one.peer.label}: model {one.peer.model}")
    terminal.note(f"seed {seed}, {per_word:.3g} tokens per word")
    return probed, Plan(scenarios, options.rounds, seed, per_word, limits)


def _hand_over(
    plan: Plan,
    probed: Sequence[Probed],
    measured: Sequence[Measured],
    written: tuple[Path, Path],
    terminal: Terminal,
) -> None:
    """Print the table, write the files. Raises `OnegpuError` when they cannot be written."""
    import platform
    from datetime import datetime

    from server import __version__
    from server.bench.chart import chart
    from server.bench.report import cells, document, remarks, table

    rounds = f"{plan.rounds} round{'s' if plan.rounds > 1 else ''}"
    print(f"Times in seconds; medians of {rounds}; seed {plan.seed}.\n")
    print(table(measured))
    for remark in remarks(measured, probed):
        print(f"- {remark}")
    now = datetime.now().astimezone()
    about = {
        "onegpu": __version__,
        "written": now.isoformat(timespec="seconds"),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
    }
    models = " · ".join(dict.fromkeys(one.peer.model for one in probed))
    subtitle = f"{models} · {now:%Y-%m-%d} · median of {rounds} · seed {plan.seed}"
    try:
        written[0].write_text(document(plan, probed, measured, about), encoding="utf-8")
        written[1].write_text(chart(cells(measured), subtitle), encoding="utf-8")
    except OSError as error:
        raise OnegpuError(f"{error.filename} cannot be written: {error.strerror}.") from error
    terminal.note(f"written: {written[0]} and {written[1]}")


class _Watcher:
    """Shows how far it is, and keeps what was measured."""

    def __init__(self, terminal: Terminal) -> None:
        self.live = sys.stderr.isatty()
        self.all: list[Measured] = []
        self._terminal = terminal

    def doing(self, what: str, answered: int, seconds: float) -> None:
        self._terminal.status(f"{what}: {answered} answers, {seconds:.0f} s")

    def measured(self, measured: Measured) -> None:
        from server.bench.report import seconds
        from server.bench.session import title
        from server.bench.statistics import figures

        self.all.append(measured)
        found = figures(measured)
        name = title(measured.scenario, measured.phase, measured.users)
        self._terminal.note(
            f"{name}, round {measured.round + 1}, {measured.server}: first token p95 "
            f"{seconds(found.first_p95)} s, gap p99 {seconds(found.gap_p99)} s, {found.rate:.1f} tok/s"
            f"{f', {found.errors} of {found.requests} failed' if found.errors else ''}"
        )


def _scenarios(options: argparse.Namespace) -> list[tuple[Scenario, int]]:
    """Return what is asked for, with the users of each. Raises `ConfigError`."""
    from server.bench.scenarios import SCENARIOS

    known = {one.name: one for one in SCENARIOS}
    found = []
    for part in filter(None, (part.strip() for part in options.scenarios.split(","))):
        name, at, users = part.partition("@")
        if name not in known:
            raise ConfigError(f"There is no scenario {name}. There are {', '.join(known)}.")
        if at and not (users.isdecimal() and 1 <= int(users) <= _MOST_USERS):
            raise ConfigError(f"{part}: users are a number from 1 to {_MOST_USERS}.")
        found.append((known[name], int(users) if at else options.users or known[name].users))
    if not found:
        raise ConfigError(f"--scenarios names none. There are {', '.join(known)}.")
    if len({(one.name, users) for one, users in found}) < len(found):
        raise ConfigError("--scenarios names the same scenario twice with the same users.")
    return found


def _outputs(prefix: Path | None) -> tuple[Path, Path]:
    """Return where JSON and chart go, known to be free before anything is measured."""
    import time

    prefix = prefix or Path(f"bench-{time.strftime('%Y%m%d-%H%M%S')}")
    paths = prefix.with_name(prefix.name + ".json"), prefix.with_name(prefix.name + ".svg")
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} exists already. Give another --out.")
    if not os.access(prefix.parent, os.W_OK):
        raise ConfigError(f"Nothing can be written to {prefix.parent}. Give another --out.")
    return paths


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Return a type for argparse."""

    def whole(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"must be a number from {least} to {most}, not {text!r}"
            )
        return int(text)

    return whole
