"""Every part of the server, made once and handed to those that need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server import __version__
from server.api.app import Application, Entry, create_app
from server.api.keyed import Head
from server.api.parts import Parts as ApiParts
from server.api.report import Reporter
from server.assembly.admission import answer_limits, api_limits, line_limits, service_limits
from server.assembly.agents import agent_of
from server.assembly.drafting import warn_of_draft
from server.assembly.engine import build_engine, llama_params, scheduler_limits
from server.assembly.gpu_guard import build_guard
from server.assembly.grouping import grouped
from server.assembly.keys import access_rules
from server.assembly.machine import host_cache, machine_memory, refuse_cpu_build
from server.assembly.pulse import crash_record
from server.assembly.routes import prepare_routes
from server.assembly.sizing import Sized, budget_of, sized
from server.assembly.tuning.applying import tuned
from server.assembly.wanted import Fetch, wanted
from server.catalog.plan import gib
from server.core.clock import Clock
from server.core.errors import ConfigError
from server.engine.host_memory import HostBudget
from server.engine.pins import Pin
from server.gateway.answers import AnswerKeeper
from server.gateway.auth import Authenticator
from server.gateway.failures import FailureLimiter
from server.gateway.fallback import Fallback
from server.gateway.gpu_shedding import GpuGuard
from server.gateway.health import Health, HealthLimits
from server.gateway.host import Host, HostSpec
from server.gateway.hosts import HostManager
from server.gateway.line import Line
from server.gateway.memory import Budget, total
from server.gateway.prompter import Prompter
from server.gateway.remote.watch import RemoteWatch
from server.gateway.routing import ModelRouter, Served
from server.gateway.service import GenerationService
from server.llama.arena import Arena, make_arena
from server.ops.metrics import Metrics
from server.ops.metrics_answers import AnswersCollector
from server.ops.metrics_fallback import FallbackCollector
from server.ops.metrics_gpu import GpuCollector
from server.ops.metrics_keys import KeyRefusalsCollector
from server.settings import Settings
from server.store.key_view import KeyView
from server.supervisor.page import Page


@dataclass(frozen=True, slots=True)
class Parts:
    """What start-up and shutdown need to reach."""

    hosts: HostManager
    router: ModelRouter
    preload: tuple[Host, ...]
    """Loaded at start, in this order; without the first one there is no server."""
    admission: Line
    answers: AnswerKeeper[Head]
    service: GenerationService
    guard: GpuGuard
    remotes: RemoteWatch
    authenticator: Authenticator
    reporter: Reporter
    health: Health
    app: Entry
    make_app: Callable[[Settings], Application]
    """Makes another application over the same parts, for `app.current`."""
    notes: tuple[str, ...]
    """What the planner chose, for people."""


def build(settings: Settings, clock: Clock, fetch: Fetch, page: Page | None = None) -> Parts:
    """Make all parts; nothing runs yet. Raises `ConfigError`, and what `fetch` does.

    `page`: shared with the supervisor, if there is one.
    """
    refuse_cpu_build(settings)  # before anything is downloaded
    names = wanted(settings, fetch)
    on_gpu = any(one.model.n_gpu_layers != 0 for one in names)
    memory = machine_memory(settings, gpu_wanted=on_gpu, page=page)
    contexts, _ = tuned(sized(grouped(names, memory), memory), memory, settings.tuned_dir)
    for one in contexts:
        warn_of_draft(one.group, one.shape, one.draft, one.plan)
    planned = sum(one.footprint.cpu for one in contexts)
    prefixes = HostBudget(host_cache(settings, memory, planned))
    arena = make_arena(prefixes.limit)
    admission = Line(line_limits(settings.gateway), clock)
    served: dict[str, Served] = {}
    preload: list[Host] = []
    for one in contexts:
        host, members = _host(one, admission, clock, page, prefixes, arena)
        served |= {found.agent.name: found for found in members}
        if any(member.preload for member in one.group.members):
            preload.append(host)
    _check_preload(preload, budget_of(memory))
    router = ModelRouter([served[one.name] for one in names])
    prepare_routes(settings, router, admission, clock)()
    remotes = RemoteWatch(router, admission, clock)
    hosts = HostManager(
        list(dict.fromkeys(one.host for one in router.served)), budget_of(memory), clock
    )
    authenticator = Authenticator(KeyView(settings.data_dir), clock, FailureLimiter(clock))
    metrics = Metrics(hosts.hosts, admission, {} if page is None else page.restarts)
    metrics.add(KeyRefusalsCollector(authenticator.counters))
    answers = AnswerKeeper[Head](answer_limits(settings.gateway.idempotency), clock)
    metrics.add(AnswersCollector(answers))
    guard = build_guard(settings, memory, hosts, clock)
    metrics.add(GpuCollector(guard))
    reporter = Reporter(metrics, clock)
    service = GenerationService(
        router,
        hosts,
        admission,
        service_limits(settings),
        clock,
        telemetry=metrics,
        crashes=crash_record(page, clock),
    )
    fallback = Fallback(service, clock, guard.reason)
    metrics.add(FallbackCollector(fallback, remotes))
    stall = HealthLimits(settings.engine.stall_after)
    health = Health(hosts, router.default.host, admission, guard, stall, clock)

    def make_app(settings: Settings) -> Application:
        return create_app(
            ApiParts(
                service=service,
                fallback=fallback,
                health=health,
                answers=answers,
                reporter=reporter,
                render_metrics=metrics.render,
                gatekeeper=authenticator,
                rules=access_rules(settings.server),
                limits=api_limits(settings),
                clock=clock,
                version=__version__,
            )
        )

    return Parts(
        hosts,
        router,
        tuple(preload),
        admission,
        answers,
        service,
        guard,
        remotes,
        authenticator,
        reporter,
        health,
        Entry(make_app(settings)),
        make_app,
        _notes(contexts),
    )


def _host(
    one: Sized,
    admission: Line,
    clock: Clock,
    page: Page | None,
    prefixes: HostBudget,
    arena: Arena | None,
) -> tuple[Host, list[Served]]:
    """Make a context's host and the agents on it, which share a prompter where they can."""
    prompters: dict[str | None, Prompter] = {}
    for member in one.group.members:
        prompters.setdefault(member.template, Prompter(template=member.template))
    # Now rather than at the first load: a mistake in the settings must not wait for that.
    llama_params(one)
    scheduler_limits(one)
    sizes, last_words = one.sizes, None if page is None else page.keep_last_words
    agents = [
        (agent_of(member, sizes.n_ctx), prompters[member.template]) for member in one.group.members
    ]

    def pins() -> list[Pin]:
        """On the engine's thread, once the prompters are bound."""
        return [
            Pin(agent.name, prompter.public.of(agent)) for agent, prompter in agents if agent.pin
        ]

    spec = HostSpec(
        name=one.group.name,
        slots=sizes.slots,
        n_ctx=sizes.n_ctx,
        kv_cells=sizes.kv_cells,
        footprint=one.footprint,
        make=lambda: build_engine(
            one, tuple(prompters.values()), clock, last_words, prefixes, pins, arena
        ),
        keep_alive=one.group.keep_alive,
    )
    host = Host(spec, admission.open_lane(sizes.slots), clock.monotonic())
    return host, [Served(agent, host, prompter) for agent, prompter in agents]


def _check_preload(hosts: Sequence[Host], budget: Budget) -> None:
    """Raise `ConfigError` where one would be unloaded for the next before anybody asked for it."""
    need = total(host.spec.footprint for host in hosts)
    if not budget.holds(need):
        names = ", ".join(host.spec.name for host in hosts)
        raise ConfigError(
            f"What is to be loaded at start does not fit together: {names} need {gib(need.gpu)} of "
            f"GPU and {gib(need.cpu)} of system memory. Leave out preload for some, so that they "
            "take turns, or lower their slots and n_ctx."
        )


def _notes(contexts: Sequence[Sized]) -> tuple[str, ...]:
    return tuple(
        f"Planned for {one.group.name}: {one.reason}.\n"
        f"  As flags: {one.plan.command(str(one.group.model.path), one.group.model.draft)}"
        for one in contexts
        if one.reason
    )
