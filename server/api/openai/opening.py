"""A generation that is still being opened, because its model is being loaded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from server.gateway.generation import Generation


class Opening:
    """Opens a generation in a task of its own, so that a stream can talk meanwhile."""

    def __init__(self, work: Coroutine[Any, Any, Generation]) -> None:
        """Begin `work`. Whoever makes this must see to `close`, however it ends."""
        self._task = asyncio.create_task(work)

    async def within(self, seconds: float) -> Generation | None:
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


def _end(task: asyncio.Task[Generation]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
