"""What a worker tells its supervisor, and what it learns from it about those before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from server.core.clock import Clock
from server.gateway.crash_record import CrashRecord, Unremembered
from server.gateway.health import Health
from server.gateway.host import Host
from server.settings import Settings
from server.settings.snapshot import to_bytes
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

    def __init__(
        self, page: Page, health: Health, first: Host, keep: Callable[[bytes], None] | None = None
    ) -> None:
        """`first`: the model whose load is told. `keep`: takes configurations that one can serve with."""
        self._page = page
        self._keep = keep or (lambda _: None)
        self._health = health
        self._first = first

    def begin(self) -> None:
        """Tell that the event loop turns and hears signals."""
        self._beat()
        self._page.state = WorkerState.LOADING

    def ready(self, settings: Settings) -> None:
        """Tell that the first model is loaded: with these settings one can serve."""
        self._serves(settings)
        self._page.ready_at = time.monotonic()
        self._page.state = WorkerState.READY

    def reloaded(self, settings: Settings, told: str) -> None:
        """Tell what came of a reload, and which settings are in force."""
        if self._page.state is WorkerState.READY:
            self._serves(settings)
        self._page.reloaded = told
        self._page.reloads += 1

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self._beat()
            await asyncio.sleep(min(_SECONDS, self._health.limits.stall_after / 4))

    def _serves(self, settings: Settings) -> None:
        self._keep(to_bytes(settings))
        self._page.origins = " ".join(settings.server.cors_origins)

    def _beat(self) -> None:
        page, verdict = self._page, self._health.fatal()
        page.stall_after = self._health.limits.stall_after
        page.progress = self._first.progress()
        page.fault = "" if verdict.ok else verdict.message
        page.beats += 1
