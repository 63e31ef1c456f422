"""The supervisor's loop: one worker after the other, until somebody asks for the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.core.errors import OnegpuError
from server.supervisor.backoff import Backoff
from server.supervisor.fingerprints import Fingerprints
from server.supervisor.inherited import Descriptors
from server.supervisor.notify import VARIABLES, Notifier
from server.supervisor.page import Cause, Page, WorkerState, shared_file
from server.supervisor.responder import Responder
from server.supervisor.terminal import Terminal
from server.supervisor.watchdog import Watchdog
from server.supervisor.worker import NATIVE, Worker, describe

log = logging.getLogger(__name__)

_TICK = 1.0
"""Seconds between two looks at a worker of which nothing is heard."""
_RELOAD_TICK = 0.05
_TRACE_SECONDS = 0.5
"""What a worker that stands still has to write down where."""
_EARLY_DEATHS = 3
"""So many workers in a row that were killed before any was ready are the end."""
_SILENT_SECONDS = 1.0
"""A longer pause is told to those who connect."""


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended."""

    code: int
    """Exit status, or the negative number of a signal."""
    ready_for: float | None
    """Seconds; None: it never was."""
    words: str
    """What native code said last."""
    reason: str | None
    """Why the supervisor ended it; None: it ended by itself."""

    @property
    def cause(self) -> Cause:
        """What it is counted as."""
        if self.code >= 0:
            return Cause.EXITED
        if self.reason is not None:
            return Cause.UNFIT
        return Cause.CRASHED if -self.code in NATIVE else Cause.KILLED

    def __str__(self) -> str:
        """Say it in one line, to follow "the server process"."""
        told = describe(self.code) if self.reason is None else f"was ended: {self.reason}"
        return f"{told} ({self.words})" if self.words else told


class Supervisor:
    """Runs workers on one listening socket. `run` belongs to the main thread: it takes signals."""

    def __init__(
        self,
        command: Callable[[Descriptors], list[str]],
        listener: socket.socket,
        environ: Mapping[str, str],
        backoff: Backoff | None = None,
    ) -> None:
        """`command`: what starts a worker. Takes `listener` over; `environ` is the workers' too."""
        self._command = command
        self._listener = listener
        self._environ = {key: value for key, value in environ.items() if key not in VARIABLES}
        self._notifier = Notifier(environ)
        self._terminal = Terminal()
        self._backoff = backoff or Backoff()
        self._parent, self._lifeline = os.pipe()
        page = shared_file("onegpu-page", Page.SIZE)
        self._page = Page(page)
        self._descriptors = Descriptors(
            listener.fileno(), page, self._parent, shared_file("onegpu-configuration")
        )
        self._worker: Worker | None = None
        self._changed = asyncio.Event()
        self._stopping: int | None = None
        """The signal that asked for the end."""
        self._restarts: Counter[Cause] = Counter()
        self._failed = 0
        """Workers since the last one that was ready."""
        self._served = False
        """Whether any worker was ever ready."""
        self._announced: Worker | None = None
        """Of whose readiness systemd was told."""
        self._hung_up = False
        """Whether a reload is asked for that the worker has not been told of."""
        self._reloads: int | None = None
        """The page's count before a reload that is under way."""

    async def run(self) -> int:
        """Serve until a signal, or until there is no point. Returns the exit status.

        Raises `OnegpuError` when worker after worker is killed before any was ready.
        """
        self._handle_signals()
        alive = asyncio.create_task(self._stay_alive())
        try:
            while True:
                end = await self._live()
                status = self._judge(end)
                if status is not None:
                    return status
                if await self._pause(end):
                    return 0
                self._restarts[end.cause] += 1
                self._failed = 0 if end.ready_for is not None else self._failed + 1
        finally:
            alive.cancel()
            self._close()

    async def _live(self) -> End:
        """Run one worker to its end."""
        self._page.renew(self._restarts, self._failed)
        # A reload ends with the worker that was at it: this one reads the configuration anyway.
        self._hung_up, self._reloads = False, None
        numbers = self._descriptors
        inherited = (numbers.listener, numbers.page, numbers.parent, numbers.configuration)
        try:
            worker = Worker(self._command(numbers), inherited, self._environ)
        except OSError as error:
            log.error("No server process can be started: %s", error)  # noqa: TRY400 - told, not debugged
            return End(1, None, "", f"it could not be started: {error.strerror}")
        self._worker = worker
        watchdog, reason = Watchdog(), None
        while not await self._ended(worker):
            self._tell()
            if reason is None and self._page.state is not WorkerState.STARTING:
                page = self._page
                now = time.monotonic()
                reason = watchdog.look(now, page.beats, page.fault, page.stall_after)
                if reason is not None:
                    log.error("Ending the server process: %s", reason)
                    await self._put_down(worker)
        self._worker = None
        code = worker.code or 0
        if reason is None and -code in NATIVE:
            running = Fingerprints(self._page).crashed(time.monotonic())
            log.error("%d requests were running; one that runs at two crashes is refused", running)
        ready_at = self._page.ready_at
        ready_for = time.monotonic() - ready_at if ready_at else None
        self._served = self._served or ready_for is not None
        return End(code, ready_for, self._page.last_words, reason)

    async def _ended(self, worker: Worker) -> bool:
        """Wait for a tick, or for a signal; tell whether the worker has ended."""
        tick = _TICK if self._reloads is None else _RELOAD_TICK
        if self._page.state is not WorkerState.STARTING:
            tick = min(tick, max(0.05, self._page.stall_after / 4))
        if worker.code is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tick):
                    await self._changed.wait()
        self._changed.clear()
        worker.reap()  # should its SIGCHLD ever be lost
        return worker.code is not None

    async def _put_down(self, worker: Worker) -> None:
        """End a worker that does not do its work, with a trace of where each thread is."""
        worker.send(signal.SIGQUIT)
        await asyncio.sleep(_TRACE_SECONDS)
        worker.kill()

    def _judge(self, end: End) -> int | None:
        """Return the exit status if this end is everybody's, else None."""
        if self._stopping is not None:
            if end.cause is Cause.CRASHED:
                log.error("The server process %s while it was stopping", end)
            return end.code if end.code >= 0 else 128 + self._stopping
        if self._served:
            return None
        if end.code >= 0:
            return end.code  # it has told why, and would again
        if self._failed + 1 < _EARLY_DEATHS:
            return None
        raise OnegpuError(
            f"The server process {end}, {_EARLY_DEATHS} times in a row before it was ready."
        )

    async def _pause(self, end: End) -> bool:
        """Wait before the next worker; True if the end was asked for meanwhile."""
        seconds = self._backoff.after(end.ready_for)
        when = f"in {seconds:.0f} s" if seconds else "at once"
        log.error("The server process %s; starting another one %s", end, when)
        self._notifier.status(f"Restarting {when}: the server process {end}")
        until = time.monotonic() + seconds
        async with contextlib.AsyncExitStack() as stack:
            if seconds > _SILENT_SECONDS:
                why = f"The server process {end} and is about to be restarted."
                left = lambda: until - time.monotonic()  # noqa: E731 - of no use elsewhere
                origins = self._page.origins.split()
                await stack.enter_async_context(Responder(self._listener, why, left, origins))
            while self._stopping is None and (left_now := until - time.monotonic()) > 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_now):
                        await self._changed.wait()
        return self._stopping is not None

    def _tell(self) -> None:
        """Tell systemd what the page says."""
        page = self._page
        if self._stopping is not None:
            return
        if self._hung_up and self._worker is not None and page.state is not WorkerState.STARTING:
            self._hung_up, self._reloads = False, page.reloads
            self._worker.send(signal.SIGHUP)
        if self._reloads is not None:
            if page.reloads != self._reloads:
                self._reloads = None
                # Before the first model is loaded nobody may take it for ready.
                (self._notifier.ready if self._announced else self._notifier.status)(page.reloaded)
        elif page.state is WorkerState.LOADING:
            self._notifier.status(f"Loading, {page.progress:.0%} done")
        elif page.state is WorkerState.READY and self._announced is not self._worker:
            self._announced = self._worker
            self._notifier.ready("Serving")

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(signal.SIGCHLD, self._child)

    def _child(self) -> None:
        if self._worker is not None:
            self._worker.reap()
        self._changed.set()

    def _stop(self, number: int) -> None:
        first, self._stopping = self._stopping is None, number
        if self._worker is not None:
            if first:
                self._worker.send(number)
            else:
                log.warning("Second signal: ending at once")
                self._worker.kill()
        if first:
            self._notifier.stopping()
            # The worker's own descriptor is the last one then: nobody waits for who does not come.
            self._listener.close()
        self._changed.set()

    def _hang_up(self) -> None:
        if self._terminal.gone():
            if self._stopping is None:  # it is told of twice, which is no second wish
                self._stop(signal.SIGTERM)
            return
        if self._stopping is not None:
            return
        if self._announced is not None:
            self._notifier.reloading()
        # A worker that starts may have read the file as it was, and hears nothing yet.
        self._hung_up = True
        self._changed.set()

    async def _stay_alive(self) -> None:
        """Tell systemd again and again that this process turns."""
        every = self._notifier.watchdog_every
        while every is not None:
            self._notifier.alive()
            await asyncio.sleep(every)

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.kill()
        numbers = self._descriptors
        self._listener.close()
        self._page.close()
        for number in (numbers.page, numbers.configuration, self._parent, self._lifeline):
            os.close(number)
