"""Which of the parts that work on their own stand still: engines, the GPU guard, others made known."""

from __future__ import annotations

from collections.abc import Callable

from server.core.beat import Beat
from server.core.clock import Clock
from server.core.errors import EngineStalled
from server.engine.interface import EngineState, EngineStatus
from server.gateway.host import Host, HostState

_LATE = 0.01
"""Seconds: who looks at the very moment would look again and again until it is past."""


class Watchdog:
    """Asks when it is asked; does nothing by itself. Beats are read on the event loop."""

    def __init__(self, clock: Clock) -> None:
        """Nobody is watched at first."""
        self._clock = clock
        self._beats: dict[str, tuple[Callable[[], Beat], bool]] = {}

    def watch(self, name: str, beat: Callable[[], Beat], *, vital: bool = True) -> None:
        """Look after a part; `name` is told to people: `the store's writer`. `beat` must not block.

        `vital`: whether requests need it.
        """
        self._beats[name] = beat, vital

    def faults(self, *, vital: bool = False) -> dict[str, str]:
        """Return who stands still with work to do, each with what to tell of it; all, or the vital."""
        now = self._clock.monotonic()
        beats = {name: beat for name, (beat, needed) in self._beats.items() if needed or not vital}
        found = {name: beat().still(now) for name, beat in beats.items()}
        return {
            name: f"{name[:1].upper()}{name[1:]} has work but has not got on for {still:.0f} s."
            for name, still in found.items()
            if still
        }


class EngineWatch:
    """Tells a stalled engine from a busy one: it has work, and no step of it ends."""

    def __init__(self, clock: Clock, stall_after: float = 60.0) -> None:
        """`stall_after`: seconds without a finished step, with work to do, that are too many."""
        self.stall_after = stall_after
        self._clock = clock

    def stalled(self, host: Host) -> EngineStalled | None:
        """Return what to tell those who want a loaded model that is stalled; None while it is well."""
        status = host.status() if host.state is HostState.READY else None
        return None if status is None else self.fault(status)

    def fault(self, status: EngineStatus) -> EngineStalled | None:
        """Return what to tell those who wait for an engine that is stalled; None while it is well."""
        if status.state is not EngineState.READY:
            return None
        still = self._beat(status).still(self._clock.monotonic())
        if not still:
            return None
        return EngineStalled(
            f"The engine has work but has not finished a step for {still:.0f} s. If it does not "
            "come round, only a restart of the server helps."
        )

    def soonest(self, status: EngineStatus) -> float:
        """Seconds from now in which `fault` may find one, unless a step ends before."""
        quiet = self._clock.monotonic() - status.last_step if status.has_work else 0.0
        return max(0.0, self.stall_after - quiet) + _LATE

    def _beat(self, status: EngineStatus) -> Beat:
        return Beat(status.last_step, status.has_work, self.stall_after)
