"""Child processes: the server under test, and workers that answer JSON lines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

from bench.common import Load
from server.settings.environment import computing_environment, read_environment

LOADING = 120.0
"""Most seconds that a server may take to get ready."""


class Worker:
    """A Python file that answers each line of JSON with another."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._process = subprocess.Popen(
            [sys.executable, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=computing_environment(read_environment()),
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send one line and wait for the answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        self._process.stdin.write(json.dumps(question, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._file} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)


class Server:
    """`onegpu serve` on a free port, with its log in a temporary file."""

    def __init__(self, load: Load) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        command = [
            *(str(Path(sys.executable).parent / "onegpu"), "serve", str(load.model)),
            *("--port", str(self.port), "--slots", str(load.slots), "--n-ctx", str(load.n_ctx)),
        ]
        settings = {
            "ONEGPU_ENGINE__THREADS": str(load.threads),
            "ONEGPU_ENGINE__N_BATCH": str(load.n_batch),
            "ONEGPU_ENGINE__N_UBATCH": str(load.n_batch),
        }
        self._process = subprocess.Popen(
            command, env=os.environ | settings, stdout=self._log, stderr=subprocess.STDOUT
        )

    def wait_ready(self) -> None:
        """Wait until the model is loaded."""
        end = time.monotonic() + LOADING
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (URLError, OSError):
                time.sleep(0.2)
        self._log.seek(0)
        raise RuntimeError(f"the server did not get ready:\n{self._log.read()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
