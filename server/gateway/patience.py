"""How long one request may wait for what: its place, the engine's next sign of life, its whole time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from server.core.errors import EngineTimeout, TotalTimeout, Unavailable
from server.engine.interface import Engine, EngineStatus
from server.gateway.watchdog import EngineWatch


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds; those for the line and the client's own from its arrival."""

    read: float
    """Longest silence of the engine, once a slot was found."""
    queue: float
    """Longest wait for the model and a slot."""
    total: float | None = None
    """Longest time to the last token, from when it joins the order; None: not limited."""
    given: float | None = None
    """What its client gives it, to the last token; None: not said."""


class Patience:
    """Looks at the event loop's clock. Used by the one reader of a generation."""

    def __init__(
        self,
        engine: Engine,
        engines: EngineWatch,
        limits: TimeLimits,
        model: str,
        overdue: Callable[[str], Unavailable],
    ) -> None:
        """`model` is named in errors, `overdue` makes that of the line. Nothing runs out before `begin`."""
        self._engine = engine
        self._engines = engines
        self._limits = limits
        self._model = model
        self._overdue = overdue
        self._mark: float | None = None
        self._arrived = 0.0
        self._quiet_since = 0.0
        self._stall_look = math.inf
        self._queue_end = math.inf
        self._end = math.inf
        self._longest = math.inf

    def begin(self, waited: float) -> None:
        """Count from now; the request came `waited` seconds ago."""
        now = asyncio.get_running_loop().time()
        self._quiet_since, self._arrived = now, now - waited
        self._stall_look = now + self._engines.soonest(self._engine.status())
        self._queue_end = self._arrived + self._limits.queue
        for begun, seconds in ((now, self._limits.total), (self._arrived, self._limits.given)):
            if seconds is not None and begun + seconds < self._end:
                self._end, self._longest = begun + seconds, seconds

    def heard(self) -> None:
        """Note an event."""
        self._quiet_since = asyncio.get_running_loop().time()
        self._stall_look = self._quiet_since + self._engines.stall_after

    def next_look(self, *, started: bool, waiting: bool) -> float:
        """Time at which `check` has something to look at."""
        now = asyncio.get_running_loop().time()
        queue_end = self._queue_end if waiting else math.inf
        silence = now + self._silence(started=started) / 4
        return min(silence, queue_end, self._end, self._stall_look)

    def check_end(self) -> None:
        """Raise `TotalTimeout` when the whole time is over."""
        if asyncio.get_running_loop().time() >= self._end:
            raise TotalTimeout(
                f"The answer was not complete after {_told(self._longest)}, the limit of "
                f"this request to {self._model!r}; the generation was ended."
            )

    def check(self, *, started: bool, waiting: bool) -> None:
        """Raise `TotalTimeout`, `EngineTimeout` or what the line says for what took too long.

        Raises `EngineStalled` for an engine that does not get on, whoever it works for.
        `waiting`: the engine does not have it yet; later it has a deadline of its own for a slot.
        """
        self.check_end()
        now = asyncio.get_running_loop().time()
        if waiting and now >= self._queue_end:
            raise self._overdue(
                f"No slot became free within {_told(now - self._arrived)}. "
                "The server is busy; try later."
            )
        status = self._engine.status()
        if (stalled := self._engines.fault(status)) is not None:
            raise stalled
        self._stall_look = now + self._engines.soonest(status)
        self._check_silence(now, status, self._silence(started=started))

    def _check_silence(self, now: float, status: EngineStatus, patience: float) -> None:
        """A step is a sign of life, whoever it served: long prompts, ours or those before it, are no hang.

        Neither is an engine that is told to hold back what it has left.
        """
        if status.last_step != self._mark or (status.held and not status.has_work):
            self._mark, self._quiet_since = status.last_step, now
        elif now - self._quiet_since >= patience:
            raise EngineTimeout(
                f"The engine was silent for {patience:g} s; the generation was ended."
            )

    def _silence(self, *, started: bool) -> float:
        """Seconds of silence that are too long.

        In the line its own deadline comes first; a read timeout later, nobody kept it.
        """
        return self._limits.read if started else self._limits.queue + self._limits.read


def _told(seconds: float) -> str:
    """Write seconds for people: whole ones, and hundredths where they matter."""
    return f"{round(seconds, 0 if seconds >= 10 else 2):g} s"
