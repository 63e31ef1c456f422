"""Generations that are still being opened, because a model is being loaded; and their successors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from server.core.errors import OnegpuError
from server.gateway.fallback import AnyGeneration, Course


class Opening:
    """Opens a generation in a task of its own, so that a stream can talk meanwhile."""

    def __init__(self, work: Coroutine[Any, Any, AnyGeneration]) -> None:
        """Begin `work`. Whoever makes this must see to `close`, however it ends."""
        self._task = asyncio.create_task(work)

    async def within(self, seconds: float) -> AnyGeneration | None:
        """Return the generation, or None if it is not open after so long. Raises what `work` does.

        Cancelled while waiting, it closes.
        """
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await asyncio.shield(self._task)
        except BaseException:
            self.close()
            raise
        return None

    def close(self) -> None:
        """End it, opened or not. Idempotent."""
        if not self._task.done():
            self._task.cancel()
            self._task.add_done_callback(_end)
        else:
            _end(self._task)


def _end(task: asyncio.Task[AnyGeneration]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


class Feed:
    """What a stream shows: a generation, and while it has no token yet another one in its place."""

    def __init__(self, course: Course) -> None:
        """Nothing begins before `start`. Whoever makes this must see to `close`."""
        self.course = course
        self.generation: AnyGeneration | None = None
        """None while it is being opened."""
        self._opening: Opening | None = None

    @property
    def opened(self) -> AnyGeneration:
        """The generation, once there is one."""
        if self.generation is None:
            message = "nothing is open yet"
            raise RuntimeError(message)
        return self.generation

    async def start(self, until: float) -> bool:
        """Open it and wait for its first token, until a time of the loop; True if there is one.

        Raises what failed for good.
        """
        time = asyncio.get_running_loop().time
        if self.course.quick:
            self.generation = await self.course.open()
        else:
            self._opening = Opening(self.course.open())
        while (generation := await self.within(max(0.0, until - time()))) is not None:
            try:
                return await generation.first_events(max(0.0, until - time()))
            except OnegpuError as error:
                self.replace(error)
        return False

    async def within(self, seconds: float) -> AnyGeneration | None:
        """Return the generation, or None if it is not open after so long. Raises what opening does."""
        if self.generation is None and self._opening is not None:
            self.generation = await self._opening.within(seconds)
        return self.generation

    def replace(self, error: OnegpuError) -> None:
        """Begin to open another one for the present one, which failed.

        Raises `error` where there is no other, or this one has tokens already.
        """
        if not self.course.recovers(self.opened, error):
            raise error
        self.opened.close(charge=False)
        self.generation, self._opening = None, Opening(self.course.instead(error))

    def close(self) -> None:
        """End whatever there is. Idempotent."""
        if self.generation is not None:
            self.generation.close()
        elif self._opening is not None:
            self._opening.close()
