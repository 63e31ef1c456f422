"""A real uvicorn on a loopback port, in the test's own event loop, over a fake engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Self

import uvicorn
from fastapi import FastAPI

from server.api.access import AccessRules, Gatekeeper
from server.api.app import create_app
from server.api.early import EarlyAnswers
from server.api.keyed import Head
from server.api.limits import ApiLimits
from server.api.parts import Parts
from server.api.report import Reporter
from server.assembly.connections import ConnectionLimits, bounded
from server.core.clock import Clock, SystemClock
from server.gateway.agent import Agent
from server.gateway.answers import AnswerKeeper, AnswerLimits
from server.gateway.auth import Authenticator
from server.gateway.failures import FailureLimiter
from server.gateway.fallback import Fallback
from server.gateway.gpu_guard import CardGuard, GuardLimits
from server.gateway.gpu_shedding import GpuGuard, WatchedCard
from server.gateway.health import Health, HealthLimits
from server.gateway.host import Host, HostSpec, HostState
from server.gateway.hosts import HostManager
from server.gateway.line import Line, LineLimits
from server.gateway.memory import Budget, Footprint
from server.gateway.prompter import Prompter
from server.gateway.rate_limit import RateLimits
from server.gateway.remote.watch import RemoteWatch
from server.gateway.routing import ModelRouter, Served
from server.gateway.service import GenerationService, ServiceLimits
from server.ops.metrics import Metrics
from server.ops.metrics_answers import AnswersCollector
from server.ops.metrics_fallback import FallbackCollector
from server.ops.metrics_gpu import GpuCollector
from server.ops.metrics_keys import KeyRefusalsCollector
from tests.fakes import FakeEngine
from tests.listening import listening

MODEL = "fake-model"
CARD = "0000:3b:00.0"


@dataclass
class Stack:
    """All parts of a server, from the fake engine up."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    api: ApiLimits = field(default_factory=lambda: ApiLimits(comment_every=30.0))
    max_queue: int = 8
    connect_timeout: float = 30.0
    read_timeout: float = 30.0
    agents: tuple[Agent, ...] = ()
    """Further agents on the same weights."""
    gatekeeper: Gatekeeper | None = None
    """None: there are no keys."""
    rules: AccessRules = field(default_factory=AccessRules)
    rate: RateLimits = field(default_factory=RateLimits)
    total_timeout: float | None = None
    stall_after: float = 60.0
    kept: AnswerLimits = field(default_factory=AnswerLimits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    idle_timeout: int = 5
    gpu: GuardLimits | None = None
    """The model is on a card that is guarded so; None: there is no guard."""
    url: str = ""
    server: uvicorn.Server = field(init=False, repr=False)

    def __post_init__(self) -> None:
        clock = self.clock = SystemClock()
        self.admission = Line(LineLimits(self.max_queue), clock)
        prompter = Prompter()
        prompter.bind(self.engine.info, self.engine.tokenizer)
        host = adopted(self.engine, self.admission)
        n_ctx = self.engine.n_ctx
        agents = [Agent((MODEL, "alias"), n_ctx=n_ctx, default_max_tokens=64), *self.agents]
        self.hosts = HostManager([host], Budget(), clock)
        gatekeeper = self.gatekeeper or without_keys(clock)
        self.guard = GpuGuard((), clock, self.hosts.expire, "there is no GPU")
        if self.gpu is not None:
            card = WatchedCard(CARD, f"Fake ({CARD})", CardGuard(self.gpu, 0.0), (host,))
            self.guard = GpuGuard((card,), clock, self.hosts.expire)
        self.metrics = Metrics([host], self.admission)
        self.metrics.add(KeyRefusalsCollector(getattr(gatekeeper, "counters", {})))
        self.service = GenerationService(
            ModelRouter([Served(agent, host, prompter) for agent in agents]),
            self.hosts,
            self.admission,
            ServiceLimits(
                self.connect_timeout,
                self.read_timeout,
                self.total_timeout,
                rate=self.rate,
                stall_after=self.stall_after,
            ),
            clock,
            telemetry=self.metrics,
        )
        self.answers = AnswerKeeper[Head](self.kept, clock)
        self.metrics.add(AnswersCollector(self.answers))
        self.fallback = Fallback(self.service, clock, self.guard.reason)
        self.remotes = RemoteWatch(self.service.router, self.admission, clock)
        self.metrics.add(FallbackCollector(self.fallback, self.remotes))
        self.metrics.add(GpuCollector(self.guard))
        limits = HealthLimits(stall_after=min(5.0, self.stall_after))
        self.health = Health(self.hosts, host, self.admission, self.guard, limits, clock)
        self.reporter = Reporter(self.metrics, clock)
        self.parts = Parts(
            service=self.service,
            fallback=self.fallback,
            health=self.health,
            answers=self.answers,
            reporter=self.reporter,
            render_metrics=self.metrics.render,
            gatekeeper=gatekeeper,
            rules=self.rules,
            limits=self.api,
            clock=clock,
            version="test",
        )
        self.app: FastAPI = create_app(self.parts)

    def with_api(self, **changes: object) -> Self:
        return replace(self, api=replace(self.api, **changes))  # type: ignore[arg-type]


class NoKeys:
    """A store that never had a key."""

    def find(self, key_id: str) -> None:
        return None

    def empty(self) -> bool:
        return True


def without_keys(clock: Clock) -> Authenticator:
    return Authenticator(NoKeys(), clock, FailureLimiter(clock))


def adopted(engine: FakeEngine, admission: Line, name: str = MODEL) -> Host:
    """Return a host that has loaded `engine` already."""
    spec = HostSpec(
        name=name,
        slots=engine.slots,
        n_ctx=engine.n_ctx,
        kv_cells=engine.slots * engine.n_ctx,
        footprint=Footprint(cpu=1),
        make=lambda: engine,
    )
    host = Host(spec, admission.open_lane(engine.slots), 0.0)
    host.engine, host.state, host.loads = engine, HostState.READY, 1
    return host


@contextlib.asynccontextmanager
async def serve(stack: Stack) -> AsyncIterator[Stack]:
    """Serve until the block ends; then nothing may be left over."""
    try:
        async with listening(
            stack.app,
            http=bounded(stack.connections, EarlyAnswers(stack.reporter)),
            timeout_keep_alive=stack.idle_timeout,
            timeout_graceful_shutdown=5,
        ) as (stack.url, stack.server):
            yield stack
    finally:
        stack.service.shutdown()
