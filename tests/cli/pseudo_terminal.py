"""A program in a pseudo-terminal, and what its screen shows."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Self

_PATIENCE = 60.0


# A session's leader that opens a terminal gets it as its controlling one, so that Ctrl-C is a signal.
# Whoever runs the tests under nohup has hang-ups ignored, which is handed down.
_TAKE_TERMINAL = """\
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, "-m", "server", *sys.argv[1:]])
"""


class PseudoTerminal:
    """`onegpu` with the given arguments, on a terminal of its own. Killed when the block ends."""

    def __init__(self, *arguments: str, home: Path) -> None:
        environ = {"ONEGPU_ENGINE__THREADS": "1", **os.environ}
        # ggml's idle threads spin otherwise, and the machine is shared with other tests.
        environ |= {"HOME": str(home), "TERM": "xterm", "OMP_WAIT_POLICY": "PASSIVE"}
        self._fd, inner = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *arguments],
            env=environ,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self.pid = self._process.pid
        self._unread = b""
        self._hung_up = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if not self._hung_up:
            os.close(self._fd)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, text: str) -> str:
        """Read up to and including `text`."""
        wanted = text.encode()
        while wanted not in self._unread:
            more = self._read()
            assert more, f"the program ended without {text!r}:\n{self._unread.decode()}"
            self._unread += more
        before, _, self._unread = self._unread.partition(wanted)
        return (before + wanted).decode()

    def hang_up(self) -> int:
        """Close the terminal; return the exit status."""
        self._hung_up = True
        os.close(self._fd)
        return self._process.wait(_PATIENCE)

    def end(self) -> int:
        """Read to the end; return the exit status."""
        while self._read():
            pass
        return self._process.wait(_PATIENCE)

    def children(self) -> list[int]:
        """Ids of the processes that the program started."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
        return [int(pid) for pid in listed.split()]

    def _read(self) -> bytes:
        ready, _, _ = select.select([self._fd], [], [], _PATIENCE)
        assert ready, f"nothing came for {_PATIENCE} s after:\n{self._unread.decode()}"
        try:
            return os.read(self._fd, 4096)
        except OSError:  # Linux says so when the program is gone
            return b""


class Watched:
    """Another process, whose end can be waited for."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def ended(self) -> bool:
        """Wait for its end; False when that takes too long."""
        ready, _, _ = select.select([self._fd], [], [], _PATIENCE)
        os.close(self._fd)
        return bool(ready)
