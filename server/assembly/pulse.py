"""The worker's sign of life, for the supervisor that watches it."""

from __future__ import annotations

import asyncio
import time

from server.gateway.health import Health
from server.gateway.host import Host
from server.supervisor.page import Page, WorkerState

_SECONDS = 1.0
"""Between two beats, at most."""


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
        page, live = self._page, self._health.live()
        page.stall_after = self._health.limits.stall_after
        page.progress = self._first.progress()
        page.fault = "" if live.ok else live.message
        page.beats += 1
