"""Loads models for those who wait for them and unloads them again, within the memory there is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from server.core.clock import Clock
from server.core.errors import Draining, ModelFailed, ModelLoading, OnegpuError
from server.gateway.host import Host, HostedEngine, HostState, Lease
from server.gateway.host_troubles import loading, not_loaded
from server.gateway.memory import Budget
from server.gateway.residency import Decision, decide

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody in line for a host. `future` ends once: with a lease, or None for a mere load."""

    host: Host
    future: asyncio.Future[Lease | None]
    holds: bool


class HostManager:
    """Moves hosts between their states. Belongs to the event loop.

    Every change goes through `_turn`, which asks `residency.decide` and does what it says.
    """

    def __init__(self, hosts: Sequence[Host], budget: Budget, clock: Clock) -> None:
        """Nothing is loaded until somebody asks."""
        self.hosts = tuple(hosts)
        self.budget = budget
        self._clock = clock
        self._line: list[_Waiter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._changed = asyncio.Event()

    async def acquire(self, host: Host, patience: float) -> Lease:
        """Return a lease on a loaded host; load it if need be. The caller must release it.

        Raises `ModelLoading` with an estimate after `patience` seconds, `ModelFailed` when it does
        not load, `Draining` once the server ends, `EngineDead`, or what a hold says.
        """
        if host.open:
            return self._lease(host)
        lease = await self._wait(host, patience, holds=True)
        if lease is None:
            message = "a holder was answered without a lease"
            raise RuntimeError(message)
        return lease

    async def load(self, host: Host) -> None:
        """Wait until `host` is loaded, without holding on to it. Raises as `acquire`."""
        if not host.open:
            await self._wait(host, None, holds=False)

    def begin_load(self, host: Host) -> None:
        """Load `host` as soon as there is room; its state tells the outcome.

        Raises `ModelFailed` where there never will be, `Draining` once the server ends.
        """
        self._refuse(host)
        if not host.open and not any(one.host is host and not one.holds for one in self._line):
            self._join(host, holds=False)

    def begin_unload(self, host: Host) -> None:
        """Unload `host` once nobody holds it; later requests wait and load it again.

        A load in progress ends; who waits for it is sent away.
        """
        if host.state is HostState.READY:
            host.leaving = True
            self._turn()
        elif host.state is HostState.LOADING:
            told = f"The model {host.spec.name!r} was told to unload while it was loading."
            self._answer_all(host, lambda: ModelLoading(told))
            self._unload(host)

    def warm(self) -> None:
        """Have every engine look anew at what is pinned; one that loads does so by itself."""
        for host in self.hosts:
            if host.engine is not None:
                host.engine.warm()

    def expire(self) -> None:
        """Unload what has been idle for its keep-alive."""
        self._turn()

    def next_expiry(self) -> float | None:
        """Monotonic time at which `expire` has something to do; None while nothing runs out."""
        times = [time for host in self.hosts if (time := host.expires()) is not None]
        return min(times, default=None)

    async def watch(self) -> None:
        """Call `expire` whenever its time has come, until cancelled or stopped."""
        while not self._closed:
            self._changed.clear()
            until = self.next_expiry()
            left = None if until is None else max(0.0, until - self._clock.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
            self.expire()

    def loading(self, host: Host) -> ModelLoading:
        """Tell how far `host` is, and when to come back."""
        return loading(host, self._clock.monotonic())

    async def stop(self) -> None:
        """End every engine and answer everybody who waits."""
        self._closed = True
        for waiter in self._line:
            _answer(waiter, Draining("The server is shutting down."))
        self._line.clear()
        engines = [host.engine for host in self.hosts if host.engine is not None]
        await asyncio.gather(*(engine.stop() for engine in engines))
        self._end_holds()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def abandon(self) -> None:
        """Give up on engines that do not end: every stream still open ends with `Draining`."""
        for host in self.hosts:
            if host.engine is not None:
                host.engine.abandon()
        self._end_holds()

    def _end_holds(self) -> None:
        """Let who is held go on to an engine that has ended, which tells them so."""
        for host in self.hosts:
            host.hold(None)

    async def _wait(self, host: Host, patience: float | None, *, holds: bool) -> Lease | None:
        self._refuse(host)
        waiter = self._join(host, holds=holds)
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(waiter.future)
        except TimeoutError:
            self._give_up(waiter)
            told = self.loading(host)
            raise (told if host.lane.held is None else host.lane.overdue(told.message)) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _join(self, host: Host, *, holds: bool) -> _Waiter:
        waiter = _Waiter(host, asyncio.get_running_loop().create_future(), holds)
        self._line.append(waiter)
        self._turn()
        return waiter

    def _refuse(self, host: Host) -> None:
        if self._closed:
            raise Draining("The server is shutting down.")
        if not self.budget.holds(host.spec.footprint):
            raise ModelFailed(
                f"The model {host.spec.name!r} needs more memory than all models may use together."
            )

    def _give_up(self, waiter: _Waiter) -> None:
        """Take out who does not wait any more. An answer that crosses with that is undone."""
        if waiter in self._line:
            self._line.remove(waiter)
            waiter.future.cancel()
            self._turn()
        elif not waiter.future.cancelled() and waiter.future.exception() is None:
            lease = waiter.future.result()
            if lease is not None:
                lease.release()

    def _lease(self, host: Host) -> Lease:
        engine = host.engine
        if engine is None:
            message = f"{host.spec.name} is ready without an engine"
            raise RuntimeError(message)
        info, tokenizer = engine.model
        host.holders += 1
        host.last_used = self._clock.monotonic()
        return Lease(host, engine, info, tokenizer, self._released)

    def _released(self, host: Host) -> None:
        host.holders -= 1
        host.last_used = self._clock.monotonic()
        if host.holders == 0:
            self._turn()

    def _turn(self) -> None:
        """Decide, let in, start and end. Called after every change."""
        if self._closed:
            return
        decision = self._decide()
        while self._let_in():  # then the line is another one
            decision = self._decide()
        for host in decision.leaving:
            if host.holders == 0:
                self._unload(host)
        if decision.start is not None:
            self._load(decision.start)
        self._changed.set()

    def _decide(self) -> Decision:
        # What is held is not to begin; and others need not wait, or go, for it.
        wanted = list(dict.fromkeys(one.host for one in self._line if one.host.lane.held is None))
        decision = decide(self.hosts, wanted, self.budget, self._clock.monotonic())
        for host in self.hosts:
            host.closing = host in decision.leaving
        return decision

    def _let_in(self) -> bool:
        """Answer those whose host is open; tell whether there were any."""
        ready = [waiter for waiter in self._line if waiter.host.open]
        for waiter in ready:
            self._line.remove(waiter)
            try:
                waiter.future.set_result(self._lease(waiter.host) if waiter.holds else None)
            except OnegpuError as error:
                _answer(waiter, error)
        return bool(ready)

    def _load(self, host: Host) -> None:
        host.state, host.error = HostState.LOADING, None
        host.load_started = self._clock.monotonic()
        try:
            host.engine = host.spec.make()
            host.engine.start()
        except Exception as error:
            if not isinstance(error, OnegpuError):
                log.exception("The engine of %s could not be made", host.spec.name)
                error = OnegpuError(f"{type(error).__name__}: {error}")
            self._failed(host, error)
            # Not at once: this is within a turn.
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._spawn(self._loaded(host, host.engine))

    async def _loaded(self, host: Host, engine: HostedEngine) -> None:
        """Wait for a load and tell its outcome."""
        error: OnegpuError | None = None
        try:
            await engine.wait_loaded()
        except OnegpuError as found:
            error = found
            await engine.stop()
        overtaken = host.engine is not engine or host.state is not HostState.LOADING
        if self._closed or overtaken:
            return  # stopped, or told to unload, while it loaded; the next load may have begun
        if error is not None:
            self._failed(host, error)
        else:
            now = self._clock.monotonic()
            host.state, host.last_used = HostState.READY, now
            host.load_seconds = now - host.load_started
            host.loads += 1
            log.info("Loaded %s in %.1f s", host.spec.name, host.load_seconds)
        self._turn()

    def _failed(self, host: Host, error: OnegpuError) -> None:
        host.state, host.engine, host.error = HostState.FAILED, None, error
        log.error("%s does not load: %s", host.spec.name, error.message)
        self._answer_all(host, lambda: not_loaded(host, error))

    def _answer_all(self, host: Host, error: Callable[[], OnegpuError]) -> None:
        """Send everybody away who waits for `host`, each with an error of their own."""
        for waiter in [waiter for waiter in self._line if waiter.host is host]:
            self._line.remove(waiter)
            _answer(waiter, error())

    def _unload(self, host: Host) -> None:
        host.state, host.leaving = HostState.UNLOADING, False
        self._spawn(self._unloaded(host))

    async def _unloaded(self, host: Host) -> None:
        """End the engine; only then does its memory count as free."""
        engine = host.engine
        if engine is not None:
            await engine.stop()
            host.past, host.past_seconds = host.counters()
        host.engine, host.state, host.closing = None, HostState.UNLOADED, False
        log.info("Unloaded %s", host.spec.name)
        self._turn()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _answer(waiter: _Waiter, error: OnegpuError) -> None:
    if not waiter.future.done():
        waiter.future.set_exception(error)
        waiter.future.exception()  # retrieved: who gave up at the same moment does not ask for it
