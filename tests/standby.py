"""A server with models that stand in for its first one, each over a fake engine of its own."""

from __future__ import annotations

from collections.abc import Mapping

from server.core.errors import Unavailable
from server.engine.interface import EngineState
from server.gateway.agent import Agent
from server.gateway.host import Host, HostState
from server.gateway.hosts import HostManager
from server.gateway.memory import Budget
from server.gateway.prompter import Prompter
from server.gateway.routing import ModelRouter, Routes, Served
from tests.fakes import FakeClock, FakeEngine
from tests.serving import MODEL, Stack, adopted

DEFAULT = frozenset({"loading", "failed", "dead", "stalled", "gpu_memory"})


class Trio(Stack):
    """The usual model, `small` (64 tokens) and `large`, which answer for it in this order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.small, self.large = FakeEngine(n_ctx=64), FakeEngine()
        self.still = FakeClock()
        self.shed: set[Host] = set()
        hosts = list(self.hosts.hosts)
        served = list(self.service.router.served)
        for name, engine in (("small", self.small), ("large", self.large)):
            host = adopted(engine, self.admission, name)
            prompter = Prompter()
            prompter.bind(engine.info, engine.tokenizer)
            agent = Agent((name,), n_ctx=engine.n_ctx, default_max_tokens=16)
            served.append(Served(agent, host, prompter))
            hosts.append(host)
        self.hosts = self.service.hosts = HostManager(hosts, Budget(), self.parts.clock)
        self.service.router = ModelRouter(served)
        self.stand_in({MODEL: ("small", "large")})
        self.fallback.clock, self.fallback._shedding = self.still, self._shedding

    def stand_in(self, lists: Mapping[str, tuple[str, ...]], *more: str) -> None:
        """Set who answers for whom; `more`: reasons beyond the usual."""
        self.service.router.routes = Routes(fallbacks=lists, reasons=DEFAULT | set(more))

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts.hosts if host.spec.name == name)

    def engine_of(self, name: str) -> FakeEngine:
        return {MODEL: self.engine, "small": self.small, "large": self.large}[name]

    def unloaded(self, *names: str) -> None:
        """Have them loaded when they are asked for, and no sooner than the test says."""
        for name in names:
            host, engine = self.host(name), self.engine_of(name)
            host.engine, host.state, host.loads = None, HostState.UNLOADED, 0
            engine.gated = True
            engine.loaded.clear()

    def kill(self, *names: str) -> None:
        for name in names:
            engine = self.engine_of(name)
            engine.state, engine.dead_reason = EngineState.DEAD, f"{name} is dead"

    def _shedding(self, host: Host) -> Unavailable | None:
        error = Unavailable("the card is full", retry_after=3.0)
        error.code = "gpu_memory"
        return error if host in self.shed else None
