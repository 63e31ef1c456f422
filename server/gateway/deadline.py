"""A time limit for waits that come one after the other, with one timer for all of them.

`asyncio.timeout` makes and cancels a timer per wait. A stream waits once per token, for milliseconds, against
limits of seconds: here the timer of an earlier wait stays, and looks, when it fires, for whose time is over.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType


class Deadline:
    """`with deadline.until(when): …` raises `TimeoutError` past `when`. One task at a time; `close` at the end."""

    def __init__(self) -> None:
        """No timer yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._fires = math.inf
        self._when = math.inf
        self._task: asyncio.Task[object] | None = None
        """Who waits."""
        self._cancelling = 0
        self._expired = False

    def until(self, when: float) -> Deadline:
        """Set the limit of the next wait, in the event loop's time."""
        self._when = when
        return self

    def __enter__(self) -> None:
        """Begin to wait."""
        task = self._task = asyncio.current_task()
        if task is None:
            raise AssertionError("a deadline is for tasks")
        self._cancelling, self._expired = task.cancelling(), False
        if self._when < self._fires:
            self._arm()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End the wait. Raises `TimeoutError` where its time was over, and nobody else cancelled it."""
        task, self._task = self._task, None
        if not self._expired or task is None:
            return
        # As asyncio.timeout: what was cancelled by somebody else, too, stays cancelled.
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def close(self) -> None:
        """Let go of the timer; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._fires = None, math.inf

    def _arm(self) -> None:
        self.close()
        self._fires = self._when
        self._timer = asyncio.get_running_loop().call_at(self._when, self._look)

    def _look(self) -> None:
        self._timer, self._fires = None, math.inf
        if self._task is None:
            return  # the next wait sets its own
        if asyncio.get_running_loop().time() < self._when:
            self._arm()
            return
        self._expired = True
        self._task.cancel()
