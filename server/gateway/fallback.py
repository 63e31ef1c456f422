"""Who answers in place of a model that cannot: the one decision, before any first token.

A `Course` is one request's way: its model, or its model's targets one after the other, or, where
none of them can answer either, its model again with whatever that has to say.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from server.core.clock import Clock
from server.core.errors import (
    OnegpuError,
    RequestError,
    Unavailable,
)
from server.gateway.generation import Generation, StandIn
from server.gateway.host import Host, HostState
from server.gateway.host_troubles import dead, failed
from server.gateway.remote.asking import ask
from server.gateway.remote.generation import RemoteGeneration
from server.gateway.remote.model import Distant
from server.gateway.routing import Routes, Target
from server.gateway.service import GenerationService
from server.gateway.spec import GenerationSpec, TokenPrompt

REASONS = {
    "model_loading": "loading",
    "model_failed": "failed",
    "engine_dead": "dead",
    "engine_stalled": "stalled",
    "gpu_memory": "gpu_memory",
    "queue_full": "queue_full",
    "remote_failed": "remote",
}
"""Error code → why another model answers."""
_PASSING = ("loading", "queue_full")
"""What ends by itself, soon: nobody has to wait until another model is loaded for its sake."""
_RETRY_SECONDS = 30.0
"""Pause between two attempts to load a model that did not load, while others answer for it."""

AnyGeneration = Generation | RemoteGeneration
Shedding = Callable[[Host], Unavailable | None]
"""Says why nothing new may begin on a host's card; None where it may."""


class Fallback:
    """Opens what requests ask for, or what stands in for it. Belongs to the event loop."""

    def __init__(
        self, service: GenerationService, clock: Clock, shedding: Shedding | None = None
    ) -> None:
        """Which targets a model has is in `service.router.routes`, read at each request."""
        self.service = service
        self.counters: Counter[tuple[str, str, str]] = Counter()
        """Times by (model that was asked for, model that was asked in its place, reason)."""
        self.clock = clock
        self._shedding = shedding or _none
        self._retried: dict[Host, float] = {}

    def course(self, spec: GenerationSpec, opened: list[AnyGeneration] | None = None) -> Course:
        """Return the way of one request; nothing begins. Raises as `ModelRouter.pick`.

        What it opens last stands in `opened`.
        """
        return Course(self, spec, [] if opened is None else opened)

    def trouble(self, target: Target) -> Unavailable | None:
        """Say why `target` cannot answer now; None: it can."""
        if isinstance(target, Distant):
            return target.remote.failure()
        service, host = self.service, target.host
        if (
            known := self._shedding(host) or dead(host) or service.engines.stalled(host)
        ) is not None:
            return known
        return None if host.open else failed(host) or service.hosts.loading(host)

    def wake(self, target: Target) -> None:
        """Begin to load what is asked for, so that others need not answer for it for ever."""
        if isinstance(target, Distant):
            return
        host = target.host
        if not host.open and (host.state is not HostState.FAILED or self._may_retry(host)):
            with contextlib.suppress(OnegpuError):
                self.service.hosts.begin_load(host)

    def _may_retry(self, host: Host) -> bool:
        now = self.clock.monotonic()
        if now - self._retried.get(host, -math.inf) < _RETRY_SECONDS:
            return False
        self._retried[host] = now
        return True


class Course:
    """One request's way to an answer. Whoever is given a generation must `close` it."""

    def __init__(
        self, fallback: Fallback, spec: GenerationSpec, opened: list[AnyGeneration]
    ) -> None:
        """Made by `Fallback.course`."""
        self.spec = spec
        self._opened = opened
        self._fallback = fallback
        self._service = fallback.service
        router = self._service.router
        self._routes: Routes = router.routes
        self.primary = router.find(spec.model, spec.principal, spec)
        """What the request asks for."""
        names = self._routes.fallbacks.get(self.primary.agent.name, ()) if spec.fallback else ()
        self._targets = deque(names)
        self._reason = ""
        self._begun = self._service.clock.monotonic()
        self._at_primary = False
        """Whether what was opened last is the primary's."""
        self._error: OnegpuError | None = None
        """What the primary said."""

    @property
    def quick(self) -> bool:
        """Whether `open` need not wait for a load, be it another one's after the line was full."""
        return not self._targets and self.loading is None

    @property
    def loading(self) -> Host | None:
        """What was asked for, while it is not loaded."""
        target = self.primary
        return None if isinstance(target, Distant) or target.host.open else target.host

    async def open(self) -> AnyGeneration:
        """Start what was asked for, or what stands in for it. Raises as `GenerationService.open`."""
        if self._targets:
            trouble = self._fallback.trouble(self.primary)
            if trouble is not None and self._counts(trouble):
                self._fallback.wake(self.primary)
                found = await self._next()
                if found is not None:
                    return found
        return await self._ask_primary()

    def recovers(self, generation: AnyGeneration, error: OnegpuError) -> bool:
        """Whether `instead` is to be asked: before the first token, where anybody may answer.

        After a target it always is: if nobody is left, it knows what the model itself said.
        """
        if generation.seconds_to_first_token is not None:
            return False
        if not self._at_primary:
            return True
        return bool(self._targets) and REASONS.get(error.code) in self._routes.reasons

    async def instead(self, error: OnegpuError) -> AnyGeneration:
        """Return what answers for a generation that failed before its first token, and is closed.

        Raises `error`, or what the model itself says, where nothing does.
        """
        if self._at_primary:
            self._error = error
            if not self._counts(error):
                raise error
        found = await self._next()
        if found is not None:
            return found
        if self._error is None:
            return await self._ask_primary()
        raise self._error

    async def begun(self) -> AnyGeneration:
        """Return a generation that has its first token, or has ended without one."""
        generation = await self.open()
        while True:
            try:
                await generation.first_events(math.inf)
                return generation
            except OnegpuError as error:
                recovers = self.recovers(generation, error)
                generation.close(charge=not recovers)
                if not recovers:
                    raise
                generation = await self.instead(error)
            except BaseException:
                generation.close()
                raise

    async def _ask_primary(self) -> AnyGeneration:
        self._at_primary = True
        try:
            return await self._open(self.primary)
        except OnegpuError as error:
            self._error = error
            if not self._counts(error):
                raise
            found = await self._next()
            if found is None:
                raise
            return found

    def _counts(self, error: OnegpuError) -> bool:
        """Note why another one is to answer; False: it is not to."""
        reason = REASONS.get(error.code, "")
        if not self._targets or reason not in self._routes.reasons:
            return False
        self._reason = reason
        return True

    async def _next(self) -> AnyGeneration | None:
        """Open the next target that can answer; None where there is none left."""
        while self._targets:
            target = self._stand_in(self._targets.popleft())
            if target is None:
                continue
            try:
                generation = await self._open(target)
            except (RequestError, Unavailable):
                continue
            name = target.agent.name
            generation.stand_in = StandIn(name, self._reason)
            self._fallback.counters[self.primary.agent.name, name, self._reason] += 1
            self._at_primary = False
            return generation
        return None

    async def _open(self, target: Target) -> AnyGeneration:
        spec = self.spec
        if spec.seconds is not None:
            # Of what its client gives it, some may be gone with others.
            spec = replace(
                spec, seconds=spec.seconds - (self._service.clock.monotonic() - self._begun)
            )
        generation: AnyGeneration
        if isinstance(target, Distant):
            generation = ask(target, spec, self._service)
        else:
            generation = await self._service.open_on(target, spec)
        self._opened[:] = [generation]
        return generation

    def _stand_in(self, name: str) -> Target | None:
        """Return a target as it answers for the model; None where it cannot."""
        principal = self.spec.principal
        target = self._service.router.named(name, self._routes)
        if not principal.may_use(target.agent.names) or _is_bound_to_vocabulary(self.spec):
            return None
        trouble = self._fallback.trouble(target)
        reason = "" if trouble is None else REASONS[trouble.code]
        if reason not in ("", "loading") or (reason and self._reason in _PASSING):
            return None
        agent = target.agent.limited(principal.limits).standing_in(self.primary.agent)
        return replace(target, agent=agent)


def _is_bound_to_vocabulary(spec: GenerationSpec) -> bool:
    """Whether it has token ids, which mean something else to another model."""
    tokens = any(isinstance(prompt, TokenPrompt) for prompt in spec.prompts)
    return tokens or bool(spec.sampling.get("logit_bias"))


def _none(_host: Host) -> None:
    """Stand in for a guard where there is none."""
