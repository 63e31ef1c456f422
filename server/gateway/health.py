"""Is the process alive, is it ready: read off the engine's own progress, not off the HTTP side."""

from __future__ import annotations

from dataclasses import dataclass

from server.core.clock import Clock
from server.engine.interface import EngineState
from server.gateway.gpu_shedding import GpuGuard
from server.gateway.host import Host, HostState
from server.gateway.hosts import HostManager
from server.gateway.line import Line
from server.gateway.watchdog import EngineWatch, Watchdog


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
    """Answers the health endpoints, for all models together."""

    def __init__(
        self,
        hosts: HostManager,
        default: Host,
        admission: Line,
        guard: GpuGuard,
        limits: HealthLimits,
        clock: Clock,
    ) -> None:
        """Only reads from all its parts. `default`: the model without which nothing is ready."""
        self.limits = limits
        self.watchdog = Watchdog(clock)
        """Looks after the parts beside the engines; each is made known to it by whoever makes it."""
        self._hosts = hosts
        self._default = default
        self._admission = admission
        self._engines = EngineWatch(clock, limits.stall_after)
        self._guard = guard
        self.watchdog.watch("the GPU guard", guard.beat, vital=False)

    def relimit(self, limits: HealthLimits) -> None:
        """Judge by other limits from now on."""
        self.limits = limits
        self._engines.stall_after = limits.stall_after

    def live(self) -> Verdict:
        """Fail when only a restart helps: engines are dead, or something stands still.

        Of the engines it takes the first model's, or all: while others answer, a restart would cut
        them. What happened to one is told in the message.
        """
        return self._judge(self.watchdog.faults())

    def fatal(self) -> Verdict:
        """As `live`, but for parts without which requests are answered all the same.

        Nobody ends a process that serves for the sake of these. A driver that hangs, say: the next
        process could not even begin.
        """
        return self._judge(self.watchdog.faults(vital=True))

    def _judge(self, others: dict[str, str]) -> Verdict:
        engines = self._live_engines()
        if not others:
            return engines
        told = [engines.message] if not engines.ok else []
        return Verdict(ok=False, status="stalled", message=" ".join([*told, *others.values()]))

    def _live_engines(self) -> Verdict:
        hosts = [host for host in self._hosts.hosts if host.state is HostState.READY]
        faults = {host: fault for host in hosts if (fault := self._fault(host)) is not None}
        if not faults:
            return Verdict(ok=True, status="ok", message="alive")
        if self._default in faults:
            return faults[self._default]
        told = [f"{host.spec.name!r}: {fault.message}" for host, fault in faults.items()]
        if len(faults) == len(hosts):
            status = next(iter(faults.values())).status
            return Verdict(ok=False, status=status, message=" ".join(told))
        return Verdict(ok=True, status="ok", message=" ".join(["alive, but", *told]))

    def gpu(self) -> str:
        """Say how the cards stand, or why nobody looks."""
        return self._guard.message()

    def _fault(self, host: Host) -> Verdict | None:
        """Say what is wrong with a loaded model; None if nothing is."""
        status = host.status()
        if status is None:
            return None
        if status.state is EngineState.DEAD:
            message = status.error or "The engine stopped."
            return Verdict(ok=False, status="dead", message=message)
        stalled = self._engines.fault(status)
        if stalled is not None:
            return Verdict(ok=False, status="stalled", message=stalled.message)
        return None

    def ready(self) -> Verdict:
        """Fail while requests would be refused: loading at start, draining, dead, stalled, no memory.

        A model that is loaded on demand later on keeps its requests in line, so it is no reason.
        """
        fatal = self.fatal()
        if not fatal.ok:
            return fatal
        host = self._default
        status, held = host.status(), host.lane.held
        if host.loads == 0 and host.state is not HostState.READY:
            progress = 0.0 if status is None else status.load_progress
            done = f"The model is loading, {progress:.0%} done."
            if held is not None:
                done = held.error().message
            return Verdict(ok=False, status="loading", message=done)
        stopped = status is not None and status.state is EngineState.STOPPED
        if self._admission.draining or (stopped and host.state is HostState.READY):
            return Verdict(ok=False, status="draining", message="The server is shutting down.")
        short = self._guard.reason(host)
        if short is not None:
            return Verdict(ok=False, status=short.code, message=short.message)
        if held is not None:
            told = f"ready, but requests wait. {held.error().message}"
            return Verdict(ok=True, status="ok", message=told)
        return Verdict(ok=True, status="ok", message="ready")
