"""One worker, as its supervisor sees it: a child process in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

NATIVE = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
"""Signals that native code brings upon its process."""


class Worker:
    """Started when it is made."""

    def __init__(
        self, command: Sequence[str], descriptors: Sequence[int], environ: Mapping[str, str]
    ) -> None:
        """`descriptors` are inherited. Raises `OSError` when there is no process to be had."""
        self._process = subprocess.Popen(
            list(command), pass_fds=tuple(descriptors), env=dict(environ), process_group=0
        )
        self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        """Exit status, or the negative number of the signal that killed it; None while it runs."""
        return self._process.returncode

    def send(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and everything that it has started, at once."""
        if self.code is None:
            self._sweep()

    def reap(self) -> None:
        """Note its end, if it has ended. As first process of a container: collect orphans too."""
        wanted = -1 if os.getpid() == 1 else self.pid
        while self.code is None or wanted == -1:
            try:
                pid, status = os.waitpid(wanted, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self._sweep()  # what it has started ends with it

    def _sweep(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def describe(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
