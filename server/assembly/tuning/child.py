"""The process that measures for us: what aborts in it is a configuration that lost."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import tempfile
from dataclasses import asdict
from types import TracebackType
from typing import Self

from server.engine.trial import Rates, TrialFailed, Workload
from server.llama.params import LlamaParams
from server.settings.environment import computing_environment, read_environment

_END_SECONDS = 10.0


class Child:
    """Starts the process when it is needed, again after it has died, and ends it."""

    def __init__(
        self, command: tuple[str, ...] = (sys.executable, "-m", "server.llama.trial")
    ) -> None:
        """`command` reads a JSON line and writes one; see server.llama.trial."""
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed with us

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End the process."""
        self._end()
        self._errors.close()

    def run(self, params: LlamaParams, work: Workload, limit: float) -> Rates:
        """Measure. Raises `TrialFailed`, also when the process dies or takes more than `limit` seconds."""
        # Imported here: what it imports is slow, and `--help` needs none of it.
        from server.llama.trial import as_document  # noqa: PLC0415

        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise AssertionError("pipes were asked for")
        line = json.dumps({"params": as_document(params), "work": asdict(work)})
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise TrialFailed(self._last_words()) from None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                self._end()
                raise TrialFailed(f"it took more than {limit:.0f} s")
        text = process.stdout.readline()
        if not text:
            raise TrialFailed(self._last_words())
        answer = json.loads(text)
        if "error" in answer:
            raise TrialFailed(answer["error"])
        return Rates(**answer["rates"])

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=computing_environment(read_environment()),
                # Ctrl-C is for us: we say what becomes of what was measured.
                process_group=0,
            )
        return self._process

    def _last_words(self) -> str:
        """End what has died, and tell what it said last."""
        status = self._end()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        aborted = [line for line in lines if line.startswith("llama.cpp aborted")]
        said = (aborted or lines or [""])[-1]
        return f"the process that tried it ended with status {status}{': ' + said if said else ''}"

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        if process.stdin is not None and process.stdout is not None:
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            return process.wait(0 if process.poll() is not None else 0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(_END_SECONDS)
