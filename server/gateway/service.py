"""From a validated request to running sequences: the one way into the engines."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from server.core.clock import Clock
from server.core.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from server.core.request import GenerationRequest, SamplingParams
from server.gateway.agent import Agent
from server.gateway.crash_record import CrashRecord, Trace, Unremembered
from server.gateway.encoding import Encoded, encode
from server.gateway.entitlement import cost, rate_limits, standing
from server.gateway.generation import Generation, GenerationContext
from server.gateway.host import Lease
from server.gateway.hosts import HostManager
from server.gateway.line import Line
from server.gateway.patience import TimeLimits
from server.gateway.principal import Principal
from server.gateway.rate_limit import Grant, RateLimiter, RateLimits, Window
from server.gateway.routing import ModelRouter, Served
from server.gateway.spec import ChatPrompt, GenerationSpec
from server.gateway.telemetry import NullTelemetry, Telemetry
from server.gateway.ticket import Ticket
from server.gateway.watchdog import EngineWatch

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What the service grants to every model. Times are in seconds."""

    connect_timeout: float = 30.0
    """Longest wait for the model and a slot, then `ModelLoading` or `QueueTimeout`."""
    read_timeout: float = 120.0
    """Longest silence of the engine once a slot was found, then `EngineTimeout`."""
    total_timeout: float | None = None
    """Longest time to the last token, then `TotalTimeout`; None: not limited."""
    rate: RateLimits = field(default_factory=RateLimits)
    """Of keys without limits of their own, and of everybody together where there are no keys."""
    tokenizer_threads: int = 2
    share_prefixes: bool = False
    """Whether one key's requests reuse what another's have computed."""
    stall_after: float = 60.0
    """Longest time in which an engine that has work finishes no step, then `EngineStalled`."""


class GenerationService:
    """Admits, waits for the model, tokenizes, checks and submits. Belongs to the event loop."""

    def __init__(
        self,
        router: ModelRouter,
        hosts: HostManager,
        admission: Line,
        limits: ServiceLimits,
        clock: Clock,
        *,
        telemetry: Telemetry | None = None,
        crashes: CrashRecord | None = None,
    ) -> None:
        """Prompters are bound to their models by whoever loads them."""
        self.limits = limits
        self.router = router
        self.hosts = hosts
        self.admission = admission
        self.clock = clock
        self.engines = EngineWatch(clock, limits.stall_after)
        self._rate = RateLimiter(clock)
        self._telemetry = telemetry or NullTelemetry()
        self._crashes = crashes or CrashRecord(Unremembered(), clock)
        self._threads = ThreadPoolExecutor(limits.tokenizer_threads, "tokenize")
        self._aside = ThreadPoolExecutor(1, "tools")

    def relimit(self, limits: ServiceLimits) -> None:
        """Grant something else from now on; what is open keeps what it was granted."""
        self.limits = limits
        self.engines.stall_after = limits.stall_after

    def turn_away(self, principal: Principal) -> None:
        """Raise what every request of that one would be refused with now, if there is such a thing.

        Raises `RateLimited`, `QueueFull`, `Draining`, as `open` does before it looks at a prompt.
        """
        self._rate.check(principal.key_id, self._limits_of(principal))
        # While a model loads, that is what there is to tell, and not that the line is full.
        if self.admission.draining or all(host.open for host in self.hosts.hosts):
            self.admission.turn_away(standing(principal))

    async def open(self, spec: GenerationSpec) -> Generation:
        """Start what `spec` asks for; the caller must `close()` what is returned.

        Waits while the model is loaded. Raises `ModelNotFound`, `ModelNotAllowed`,
        `InvalidRequest`, `ContextLengthExceeded`, `RateLimited`, `RepeatedCrash` and all
        `Unavailable`s.
        """
        return await self.open_on(self.router.pick(spec.model, spec.principal, spec), spec)

    async def open_on(self, served: Served, spec: GenerationSpec) -> Generation:
        """Start `spec` on a model that was picked for it, whatever it names. Raises as `open`."""
        self._check(served, spec)
        if (stalled := self.engines.stalled(served.host)) is not None:
            raise stalled
        patience = self.patience(served.agent, spec)
        arrived = self.clock.monotonic()
        with contextlib.ExitStack() as undo:
            grant = self.take(spec.principal)
            undo.callback(grant.release)
            ticket = self._admit(served, spec)
            undo.callback(ticket.release)
            trace = await self._crashes.enter(spec.fingerprint, patience.queue)
            undo.callback(trace.leave)
            lease = await self.hosts.acquire(served.host, patience.queue)
            undo.pop_all()
        context = GenerationContext(
            lease.engine,
            served.host.lane,
            self._telemetry,
            self.clock,
            patience,
            self.engines,
            arrived,
            trace,
        )
        generation = Generation(served.agent.name, context, ticket, grant, lease)
        try:
            _check_bias(spec, lease.tokenizer.n_vocab)
            encoded = await self._encoded(served, spec, trace, patience.queue)
            requests = self._requests(served, spec, encoded, arrived + patience.queue)
            generation.dropped_turns = sum(one.dropped_turns for one in encoded)
            generation.shapes = [one.steering.shape for one in encoded]
            generation.attach([one.tokens for one in encoded], requests)
        except BaseException:
            generation.close()
            raise
        return generation

    async def _encoded(
        self, served: Served, spec: GenerationSpec, trace: Trace, patience: float
    ) -> list[Encoded]:
        trace.began()
        try:
            async with asyncio.timeout(patience):
                return await self.in_thread(encode, served, spec)
        except TimeoutError:
            raise served.host.lane.overdue(
                f"The prompt was not tokenized within {patience:g} s. The server is busy; try later."
            ) from None
        finally:
            trace.ended(completed=False)

    @contextlib.asynccontextmanager
    async def using(
        self, name: str | None, principal: Principal
    ) -> AsyncIterator[tuple[Served, Lease]]:
        """Keep a model loaded while something other than a generation uses it. Raises as `open`."""
        served = self.router.pick(name, principal)
        lease = await self.hosts.acquire(served.host, self.limits.connect_timeout)
        try:
            yield served, lease
        finally:
            lease.release()

    async def in_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run template and tokenizer work of generations off the event loop, few at a time."""
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def aside(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run such work that no generation waits for, and that keeps none waiting."""
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._aside, call)

    def shutdown(self) -> None:
        """End the worker threads; nothing may be opened afterwards."""
        for threads in (self._threads, self._aside):
            threads.shutdown(wait=False, cancel_futures=True)

    def take(self, principal: Principal) -> Grant:
        """Let one request pass its key's limits. The caller must release it. Raises `RateLimited`."""
        return self._rate.take(principal.key_id, self._limits_of(principal))

    def windows(self, principal: Principal) -> dict[str, Window]:
        """Return what is left of a key's limits: `requests`, `tokens`, where they are limited."""
        return self._rate.windows(principal.key_id, self._limits_of(principal))

    def _limits_of(self, principal: Principal) -> RateLimits:
        return rate_limits(principal, self.limits.rate)

    def _admit(self, served: Served, spec: GenerationSpec) -> Ticket:
        """Take places in the line. Where a load is what everybody waits for, a full line says so."""
        places = spec.n * len(spec.prompts)
        deadline = None if spec.seconds is None else self.clock.monotonic() + spec.seconds
        try:
            return served.host.lane.admit(
                places,
                standing(spec.principal),
                deadline=deadline,
                cost=cost(0, served.agent.output(spec.max_tokens, 0)),
            )
        except QueueFull:
            if served.host.open:
                raise
            raise self.hosts.loading(served.host) from None

    def patience(self, agent: Agent, spec: GenerationSpec) -> TimeLimits:
        """Return the time limits: the least of the server's, the agent's and the request's own."""
        limits, given = self.limits, spec.seconds
        totals = [limits.total_timeout, agent.total_timeout]
        queue = limits.connect_timeout if given is None else min(limits.connect_timeout, given)
        total = min((seconds for seconds in totals if seconds is not None), default=None)
        return TimeLimits(limits.read_timeout, max(0.0, queue), total, given)

    def _check(self, served: Served, spec: GenerationSpec) -> None:
        """Refuse what could never run, before it takes a place."""
        served.agent.check_output(spec.max_tokens)
        slots, capacity = served.host.spec.slots, served.host.lane.capacity
        if spec.n > slots:
            raise InvalidRequest(
                f"n is {spec.n}, but this server runs at most {slots} choices at once "
                f"(its number of slots). Ask for at most {slots}.",
                param="n",
            )
        if spec.n * len(spec.prompts) > capacity:
            raise InvalidRequest(
                f"{len(spec.prompts)} prompts with n = {spec.n} are more than this server's line "
                f"holds ({capacity}). Send fewer prompts in one request.",
                param="prompt",
            )

    def _requests(
        self, served: Served, spec: GenerationSpec, prompts: Sequence[Encoded], deadline: float
    ) -> list[GenerationRequest]:
        """One request per choice; a given seed is counted up so that choices differ."""
        agent = served.agent
        chat = isinstance(spec.prompts[0], ChatPrompt)
        params, stop = agent.params(spec.sampling), agent.stops(spec.stop)
        requests = []
        for number in range(len(prompts) * spec.n):
            encoded = prompts[number // spec.n]
            prompt = encoded.tokens
            if len(prompt) + (spec.max_tokens or 1) > agent.n_ctx:
                raise ContextLengthExceeded(
                    prompt_tokens=len(prompt),
                    max_tokens=spec.max_tokens,
                    n_ctx=agent.n_ctx,
                    param="messages" if chat else "prompt",
                )
            requests.append(
                GenerationRequest(
                    request_id=f"{spec.request_id}-{number}",
                    prompt=prompt,
                    max_tokens=agent.output(spec.max_tokens, len(prompt)),
                    sampling=_of_choice(params, number % spec.n),
                    stop=stop,
                    thinking=encoded.steering.thinking,
                    constraint=encoded.steering.constraint,
                    ignore_eos=spec.ignore_eos,
                    logprobs=spec.logprobs,
                    reuse_prefix=spec.reuse_prefix,
                    cache_scope="" if self.limits.share_prefixes else spec.principal.key_id,
                    public_tokens=encoded.public,
                    # The others follow the first in the line. Once that one runs, to give up on
                    # one of them would throw away the work of all.
                    deadline=deadline if number == 0 else None,
                )
            )
        return requests


def _of_choice(params: SamplingParams, choice: int) -> SamplingParams:
    if params.seed is None or choice == 0:
        return params
    return replace(params, seed=(params.seed + choice) % 2**32)


def _check_bias(spec: GenerationSpec, n_vocab: int) -> None:
    for token in spec.sampling.get("logit_bias", ()):
        if not 0 <= token < n_vocab:
            raise InvalidRequest(
                f"Token id {token} is out of range: this model's ids are 0 to {n_vocab - 1}.",
                param="logit_bias",
            )
