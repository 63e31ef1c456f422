"""Workers that are a few lines each, and a supervisor that runs them one after the other."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from server.supervisor.backoff import Backoff
from server.supervisor.inherited import Descriptors
from server.supervisor.supervisor import Supervisor

ROOT = Path(__file__).parents[2]

_PROLOGUE = """
import os, signal, subprocess, sys, time
from server.supervisor.inherited import Descriptors, Inherited
from server.supervisor.page import WorkerState
me = Inherited(Descriptors.parse(sys.argv[1]))
page = me.page

def ready(stall_after=60.0):
    page.stall_after, page.ready_at, page.state = stall_after, time.monotonic(), WorkerState.READY

def stop(status=0, number=signal.SIGTERM):
    signal.signal(number, lambda *_: os._exit(status))
    os.kill(os.getppid(), number)
    signal.pause()
"""


class Scripted:
    """Runs the first script, then the second, …; one more than there are is a failure."""

    def __init__(self, *scripts: str, backoff: Backoff | None = None, **environ: str) -> None:
        self._left = [_PROLOGUE + script for script in scripts]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        inherited = os.environ | {"PYTHONPATH": str(ROOT)} | environ
        self.supervisor = Supervisor(
            self._command, self.listener, inherited, backoff or Backoff(longest=0.0)
        )

    async def run(self) -> int:
        return await self.supervisor.run()

    @property
    def left(self) -> int:
        """How many were not started."""
        return len(self._left)

    def _command(self, numbers: Descriptors) -> list[str]:
        return [sys.executable, "-c", self._left.pop(0), str(numbers)]
