"""What becomes of requests while the process that answers them is killed again and again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.load_client import Asked, ask
from server.bench.client import Outcome

ROOT = Path(__file__).resolve().parents[2]
_MARK = "BENCH_KILL"
_LOADED = re.compile(r"Loaded \S+ in ([0-9.]+) s")


@dataclass
class Asking:
    """One request, in seconds of one clock."""

    begin: float
    end: float
    outcome: Outcome


@dataclass
class Tally:
    """What was seen."""

    requests: list[Asking] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    """Seconds that each worker took to load its model."""
    orphans: list[int] = field(default_factory=list)
    status: int | None = None
    """The server's exit status at the end."""

    def met(self, one: Asking) -> bool:
        """Whether a worker was killed while it was under way."""
        return any(one.begin <= kill <= one.end for kill in self.kills)

    @property
    def refused(self) -> int:
        """Count connections that nobody took."""
        return sum(one.outcome.code == "ConnectionRefusedError" for one in self.requests)

    @property
    def lost(self) -> Counter[str]:
        """Requests that met no kill and failed all the same, by what they were told."""
        return self._told(met=False)

    @property
    def cut(self) -> Counter[str]:
        """Requests that met a kill, by how they ended: with an answer, an error or a close."""
        return self._told(met=True)

    def _told(self, *, met: bool) -> Counter[str]:
        return Counter(
            "answered" if one.outcome.good else f"{one.outcome.status} {one.outcome.code}"
            for one in self.requests
            if self.met(one) == met and (met or not one.outcome.good)
        )

    def first_answers(self) -> list[float]:
        """Seconds from each kill to the first token of a request that came after it."""
        return [
            min(
                (
                    one.begin + one.outcome.first - kill
                    for one in self.requests
                    if one.begin > kill and one.outcome.first
                ),
                default=float("inf"),
            )
            for kill in self.kills
        ]


class Killed:
    """`onegpu serve` in a process tree that can be told from all others."""

    def __init__(self, model: Path, slots: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._mark = uuid.uuid4().hex
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environ = {"ONEGPU_ENGINE__THREADS": "1", **os.environ, "PYTHONPATH": path}
        environ |= {"ONEGPU_DATA_DIR": "/nonexistent", "ONEGPU_SERVER__ACCESS_LOG": "false"}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "server", "serve", str(model), "--port", str(self.port)),
                *("--slots", str(slots), "--n-ctx", "1024"),
            ],
            env=environ | {_MARK: self._mark},
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )

    def kill(self) -> None:
        """Kill the worker, and leave the supervisor alone."""
        for pid in self.processes():
            if pid != self._process.pid and os.getpgid(pid) == pid:
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Return every process that descends from the one that was started, wherever it went."""
        return [pid for pid in _pids() if f"{_MARK}={self._mark}".encode() in _environ(pid)]

    def log(self) -> str:
        """Return what it has logged."""
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> int:
        """End it and return its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()

    def close(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.wait()
        self._log.close()


async def tally(model: Path, *, users: int, kills: int, pause: float, slots: int = 4) -> Tally:
    """Keep `users` asking while the worker is killed `kills` times.

    `pause`: seconds between the first answer after one kill and the next kill.
    """
    server, seen, over = Killed(model, slots), Tally(), asyncio.Event()
    asked = Asked(server.port, model.stem, tokens=24)
    answered = asyncio.Condition()

    async def user(number: int) -> None:
        while not over.is_set():
            begin = time.perf_counter()
            outcome = await ask(asked, number)
            seen.requests.append(Asking(begin, time.perf_counter(), outcome))
            number += users
            async with answered:
                answered.notify_all()
            if not outcome.good:
                await asyncio.sleep(0.05)

    async def good_since(moment: float) -> None:
        async with answered:
            await answered.wait_for(
                lambda: any(one.begin > moment and one.outcome.good for one in seen.requests)
            )

    try:
        await _listening(server)
        tasks = [asyncio.create_task(user(number)) for number in range(users)]
        async with asyncio.timeout(600 + kills * (60 + pause)):
            await good_since(0.0)
            for _ in range(kills):
                await asyncio.sleep(pause)
                seen.kills.append(time.perf_counter())
                server.kill()
                await good_since(seen.kills[-1])
            over.set()
            await asyncio.gather(*tasks)
        seen.status = await asyncio.to_thread(server.stop)
        seen.orphans = server.processes()
        seen.loads = [float(found) for found in _LOADED.findall(server.log())]
    finally:
        server.close()
    return seen


async def _listening(server: Killed) -> None:
    """Wait for the first worker's socket: before that, a refusal is nobody's fault."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(0.01)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended meanwhile, or somebody else's
        return b""
