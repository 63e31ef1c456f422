"""A real `onegpu serve` in a process of its own, on a free loopback port."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Self

import httpx

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"
_PATIENCE = 60.0


class LiveServer:
    """Starts with `with`; ends by SIGTERM, and by SIGKILL if that does not help."""

    def __init__(
        self,
        *arguments: str,
        model: Path = DEMO,
        data_dir: Path = Path("/nonexistent"),
        wait_ready: bool = True,
    ) -> None:
        command = [sys.executable, "-m", "server", "serve", str(model), "--port", "0", *arguments]
        # ggml's threads spin at barriers: two of them beside a busy test would wait for each other.
        environ = {"ONEGPU_ENGINE__THREADS": "1"} | os.environ
        # Whoever runs the tests may have keys.
        environ["ONEGPU_DATA_DIR"] = str(data_dir)
        self.process = subprocess.Popen(
            command,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()
        self.url = ""
        try:
            self.url = self._await(r"Listening on (http://\S+);")[1]
            if wait_ready:
                self._await(r"is ready on")
        except BaseException:
            self.process.kill()
            self.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        try:
            status = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        for reader in self._readers:
            reader.join(_PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_PATIENCE, trust_env=False)

    def _await(self, pattern: str) -> re.Match[str]:
        ended = 0
        while ended < len(self._readers):
            line = self._lines.get(timeout=_PATIENCE)
            if line is None:
                ended += 1
            elif match := re.search(pattern, line):
                return match
        raise AssertionError(f"no line matches {pattern!r}:\n" + "".join(self.stderr))

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line)
            self._lines.put(line)
        self._lines.put(None)
