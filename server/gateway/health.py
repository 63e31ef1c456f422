"""Is the process alive, is it ready: read off the engine's own progress, not off the HTTP side."""

from __future__ import annotations

from dataclasses import dataclass

from server.core.clock import Clock
from server.engine.interface import Engine, EngineState
from server.gateway.admission import AdmissionController


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When standing still counts as dead."""

    stall_after: float = 60.0
    """Seconds without a finished step although there is work."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a check passes; `status` is one word for programs, `message` is for people."""

    ok: bool
    status: str
    message: str


class Health:
    """Answers the health endpoints."""

    def __init__(
        self, engine: Engine, admission: AdmissionController, limits: HealthLimits, clock: Clock
    ) -> None:
        """Only reads from all its parts."""
        self._engine = engine
        self._admission = admission
        self._limits = limits
        self._clock = clock

    def live(self) -> Verdict:
        """Fail when only a restart helps: the engine is dead, or its steps stand still."""
        status = self._engine.status()
        if status.state is EngineState.DEAD:
            return Verdict(ok=False, status="dead", message=status.error or "The engine stopped.")
        still = self._clock.monotonic() - status.last_step
        if (
            status.has_work
            and status.state is EngineState.READY
            and (still > self._limits.stall_after)
        ):
            return Verdict(
                ok=False,
                status="stalled",
                message=f"The engine has work but has not finished a step for {still:.0f} s.",
            )
        return Verdict(ok=True, status="ok", message="alive")

    def ready(self) -> Verdict:
        """Fail while a request would be refused: loading, draining, dead or stalled."""
        live = self.live()
        if not live.ok:
            return live
        status = self._engine.status()
        if status.state is EngineState.LOADING:
            done = f"The model is loading, {status.load_progress:.0%} done."
            return Verdict(ok=False, status="loading", message=done)
        if self._admission.draining or status.state is EngineState.STOPPED:
            return Verdict(ok=False, status="draining", message="The server is shutting down.")
        return Verdict(ok=True, status="ok", message="ready")
