"""Looks after remotes: whether they are there, and that those nobody leads to any more are let go."""

from __future__ import annotations

import asyncio
import logging

from server.core.clock import Clock
from server.gateway.line import Line
from server.gateway.remote.model import Remote
from server.gateway.routing import ModelRouter

log = logging.getLogger(__name__)

_LONGEST_SLEEP = 1.0
"""Seconds after which changed routes are noticed."""


class RemoteWatch:
    """Reads the router's routes anew each time, so they may be replaced while it runs."""

    def __init__(self, router: ModelRouter, line: Line, clock: Clock) -> None:
        """`line`: where remotes have their lanes."""
        self._router = router
        self._line = line
        self._clock = clock
        self._known: dict[Remote, None] = {}

    @property
    def routed(self) -> list[Remote]:
        """The remotes that names lead to now."""
        return [one.remote for one in self._router.routes.remotes.values()]

    async def run(self) -> None:
        """Call `look` every now and then, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LONGEST_SLEEP)

    async def look(self) -> None:
        """Probe those whose time has come; let go of those that are neither routed nor busy."""
        routed, now = self.routed, self._clock.monotonic()
        self._known |= dict.fromkeys(routed)
        for remote in [one for one in self._known if one not in routed]:
            if not remote.lane.outstanding:
                del self._known[remote]
                self._line.close_lane(remote.lane)
                await remote.close()
        due = [one for one in routed if one.limits.probe_every and now >= one.next_probe]
        found = await asyncio.gather(*(one.probe() for one in due), return_exceptions=True)
        for remote, fault in zip(due, found, strict=True):
            if isinstance(
                fault, Exception
            ):  # of this server's own: others are looked at all the same
                log.error("Looking at the remote %s failed", remote.name, exc_info=fault)

    async def close(self) -> None:
        """End all requests and connections."""
        everyone = dict.fromkeys([*self._known, *self.routed])
        await asyncio.gather(*(remote.close() for remote in everyone))
