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
        self._probes: dict[Remote, asyncio.Task[None]] = {}
        """The latest of each."""

    @property
    def routed(self) -> list[Remote]:
        """The remotes that names lead to now."""
        return [one.remote for one in self._router.routes.remotes.values()]

    async def run(self) -> None:
        """Call `look` every now and then, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LONGEST_SLEEP)

    async def look(self) -> list[asyncio.Task[None]]:
        """Probe those whose time has come; let go of those that are neither routed nor busy.

        Returns the probes that are under way: one that hangs keeps no other waiting.
        """
        routed, now = self.routed, self._clock.monotonic()
        self._known |= dict.fromkeys(routed)
        for remote in [one for one in self._known if one not in routed]:
            if not remote.lane.outstanding:
                del self._known[remote]
                self._probes.pop(remote, None)
                self._line.close_lane(remote.lane)
                await remote.close()
        due = [one for one in routed if one.limits.probe_every and now >= one.next_probe]
        return [self._begin(remote) for remote in due]

    def _begin(self, remote: Remote) -> asyncio.Task[None]:
        """Begin a probe, or go on with the one that is under way."""
        task = self._probes.get(remote)
        if task is None or task.done():
            task = self._probes[remote] = remote.spawn(_probe(remote))
        return task

    async def close(self) -> None:
        """End all requests and connections."""
        everyone = dict.fromkeys([*self._known, *self.routed])
        await asyncio.gather(*(remote.close() for remote in everyone))


async def _probe(remote: Remote) -> None:
    try:
        await remote.probe()
    except Exception:
        log.exception("Looking at the remote %s failed", remote.name)
