"""What a worker tells its supervisor, and what it learns from it about those before."""

from __future__ import annotations

import asyncio
import time

from server.core.clock import Clock
from server.gateway.crash_record import CrashRecord, Unremembered
from server.gateway.health import Health
from server.gateway.host import Host
from server.supervisor.fingerprints import LIFETIME, Fingerprints
from server.supervisor.page import Page, WorkerState

_SECONDS = 1.0
"""Between two beats, at most."""


def crash_record(page: Page | None, clock: Clock) -> CrashRecord:
    """Return what is known of requests that brought processes down; without a supervisor, nothing."""
    memory = Unremembered() if page is None else Fingerprints(page)
    return CrashRecord(memory, clock, LIFETIME)


class Pulse:
    """Writes to the page that the supervisor reads. Belongs to the event loop, whose life it shows."""

    def __init__(self, page: Page, health: Health, first: Host) -> None:
        """`first`: the model whose load is told."""
        self._page = page
        self._health = health
        self._first = first
        self._beat()
        page.state = WorkerState.LOADING

    def ready(self) -> None:
        """Tell that the first model is loaded."""
        self._page.ready_at = time.monotonic()
        self._page.state = WorkerState.READY

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self._beat()
            await asyncio.sleep(min(_SECONDS, self._health.limits.stall_after / 4))

    def _beat(self) -> None:
        page, verdict = self._page, self._health.fatal()
        page.stall_after = self._health.limits.stall_after
        page.progress = self._first.progress()
        page.fault = "" if verdict.ok else verdict.message
        page.beats += 1
