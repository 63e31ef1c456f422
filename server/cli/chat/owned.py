"""A server of one's own: started for a chat, ended with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Self

from server.cli.chat.client import Client, ServerError
from server.core.errors import OnegpuError

_URL = re.compile(r"(?:Listening|is ready) on (http://[^\s;\"]+)")
_READY = re.compile(r"is ready on http://")
_COMMAND = [sys.executable, "-m", "server.cli.chat.owned"]
_LOGGED = re.compile(r"\d{4}-\S+Z (\w+) [\w.]+: (.*)")
_PATIENCE = 40.0
"""Seconds to end in before the process is killed; running answers are finished first."""
_LOOK_EVERY = 0.25
_PR_SET_PDEATHSIG = 1


class OwnServer:
    """`onegpu serve` as a child process; started by `with`, ready when that returns."""

    def __init__(
        self,
        arguments: Sequence[str],
        on_progress: Callable[[str], None],
        on_warning: Callable[[str], None],
    ) -> None:
        """`arguments` follow `serve`.

        `on_progress` is given what the server does until it is ready, a download or a share that is
        loaded; `on_warning` what it warns of, such as a line of a Modelfile without effect.
        """
        self._arguments = list(arguments)
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._doing = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._ready = threading.Event()
        self._last: deque[str] = deque(maxlen=12)
        self._process: subprocess.Popen[str] | None = None
        self._data: tempfile.TemporaryDirectory[str] | None = None
        self._readers: list[threading.Thread] = []
        self.url = ""

    def __enter__(self) -> Self:
        # No keys: it is there for this chat, and its user's keys are for another server.
        self._data = tempfile.TemporaryDirectory(prefix="onegpu-")
        command = [
            *_COMMAND,
            "serve",
            *self._arguments,
            "--port",
            "0",
            "--data-dir",
            self._data.name,
        ]
        # A session of its own: Ctrl-C at the terminal is for the chat, not for the server.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._process = process
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
                reader.start()
                self._readers.append(reader)
        try:
            self._await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. May be called again."""
        if self._data is not None:
            self._data.cleanup()
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(_PATIENCE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def ended(self) -> str | None:
        """Say how the process ended and what it said last, if it ended by itself; else None."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(_LOOK_EVERY)  # sockets are closed a moment before the end
        except subprocess.TimeoutExpired:
            return None
        how = f"with status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return f"The server of this chat has ended, {how}. It said last:\n" + "\n".join(self._last)

    def _await_ready(self) -> None:
        ended = 0
        while ended < len(self._readers):
            try:
                line = self._lines.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                share = self._loaded()
                self._on_progress(self._doing if share is None else f"{share:.0%}")
                continue
            if line is None:
                ended += 1
                continue
            self._tell(line)
            if found := _URL.search(line):
                self.url = found[1]
            if _READY.search(line):
                self._ready.set()
                return
        raise OnegpuError("The server did not start:\n" + "\n".join(self._last))

    def _tell(self, line: str) -> None:
        """Pass on a warning, or keep what a download says of itself."""
        if logged := _LOGGED.match(line):
            if logged[1] == "warning":
                self._on_warning(logged[2])
        elif not self.url and not line.startswith("{"):
            self._doing = line
            self._on_progress(line)

    def _loaded(self) -> float | None:
        """Ask for the progress of loading. `/health` answers 503 until the model is there."""
        if not self.url:
            return None
        try:
            cards = Client(self.url).models()
        except ServerError:
            return None
        shares = [card.get("load_progress") for card in cards]
        return next((share for share in shares if isinstance(share, int | float)), None)

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            text = line.rstrip()
            if text:
                self._last.append(text)
                if not self._ready.is_set():  # then nobody takes them any more
                    self._lines.put(text)
        self._lines.put(None)


def main() -> int:
    """Run the `onegpu` command, and end when the process that started this one is gone."""
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # The chat itself tells of a server that died, and nobody else uses this one.
    os.environ.setdefault("ONEGPU_SERVER__SUPERVISED", "false")
    from server.cli.main import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
