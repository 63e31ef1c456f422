"""The asyncio side of the engine: submits requests and hands each one's events to its reader."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable

from server.core.clock import Clock
from server.core.errors import Draining, EngineDead, ModelLoading, OnegpuError
from server.core.events import Delta, Event, Failed, Finished, Started, Usage
from server.core.request import GenerationRequest
from server.engine.foresight import prefill_seconds
from server.engine.host_memory import HostBudget
from server.engine.interface import (
    BackendLoader,
    EngineState,
    EngineStatus,
    ModelInfo,
    SlotView,
    Tokenizer,
    Watch,
)
from server.engine.limits import SchedulerLimits
from server.engine.loop import EngineLoop
from server.engine.pins import FindPins


class TokenStream:
    """The events of one generation. One reader, on the event loop.

    Holds at most what the generation yields, so a slow reader costs only itself.
    """

    def __init__(
        self,
        request: GenerationRequest,
        abort: Callable[[str], None],
        watch: Watch | None = None,
    ) -> None:
        """`abort` is told the request id when the reader gives up early."""
        self.request = request
        self._abort = abort
        self._watch = watch
        self._pending: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._ended = False

    @property
    def request_id(self) -> str:
        """The id it was submitted with."""
        return self.request.request_id

    async def next_events(self) -> list[Event]:
        """Wait for an event and take all that are there. Empty once the terminal one was taken."""
        while not self._pending and not self._ended:
            self._ready.clear()
            await self._ready.wait()
        events = list(self._pending)
        self._pending.clear()
        return events

    def push(self, event: Event) -> None:
        """Add an event; nothing is taken after the terminal one."""
        if self._ended:
            return
        self._ended = isinstance(event, Finished | Failed)
        self._pending.append(event)
        self._ready.set()
        if self._watch is not None and not isinstance(event, Delta):
            self._watch(event)

    def abort(self) -> None:
        """Give up. Idempotent; a no-op after the terminal event."""
        if not self._ended:
            self._abort(self.request.request_id)


class InProcessEngine:
    """Runs an `EngineLoop` in a thread. Its methods belong to the event loop `start` ran on."""

    def __init__(
        self,
        load: BackendLoader,
        limits: SchedulerLimits,
        clock: Clock,
        host: HostBudget | None = None,
        pins: FindPins | None = None,
    ) -> None:
        """Nothing runs until `start`. `host`: host memory for prefixes that leave the KV cache, `pins`: for good."""
        self.limits = limits
        self._clock = clock
        self._engine = EngineLoop(load, limits, clock, self._publish, self._notify, host, pins)
        self._thread = threading.Thread(target=self._engine.run, name="engine", daemon=True)
        self._streams: dict[str, TokenStream] = {}
        self._waiting: dict[str, None] = {}
        """Ids that have no slot yet."""
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loaded = asyncio.Event()
        self._stopped = asyncio.Event()
        self.wakeups = 0
        """Event-loop wake-ups caused by the engine: one per step that yields something."""

    def start(self) -> None:
        """Start the engine thread, which loads the model first."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its current step. Every stream still open ends with `Draining`."""
        self._engine.stop()
        if self._thread.ident is not None:
            await self._stopped.wait()

    def abandon(self) -> None:
        """Give up on a thread that does not end: every stream still open ends with `Draining`."""
        self._end_streams()

    async def wait_loaded(self) -> None:
        """Wait for the model. Raises what kept it from loading."""
        await self._loaded.wait()
        if self._engine.error is not None:
            raise self._engine.error

    async def wait_ended(self) -> OnegpuError | None:
        """Wait until the engine is dead or stopped; return what killed it."""
        await self._stopped.wait()
        return self._engine.error

    @property
    def model(self) -> tuple[ModelInfo, Tokenizer]:
        """Facts and vocabulary. Raises `ModelLoading`, `EngineDead` or `Draining` instead."""
        self._check()
        backend = self._engine.backend
        if backend is None:
            message = "ready without a backend"
            raise RuntimeError(message)
        return backend.info, backend.tokenizer

    def submit(self, request: GenerationRequest, watch: Watch | None = None) -> TokenStream:
        """Let a request wait for a slot by its rank. `ValueError`: it could never run.

        `watch` must not raise: the others' events come after it.
        """
        self._check()
        self.limits.require(request)
        if request.request_id in self._streams:
            message = f"{request.request_id} is already known"
            raise ValueError(message)
        stream = TokenStream(request, self._engine.abort, watch)
        self._streams[request.request_id] = stream
        self._waiting[request.request_id] = None
        self._engine.submit(request)
        return stream

    def prefill_seconds(self, request: GenerationRequest) -> float:
        """Estimate what computing its prompt takes, from what is cached as of now."""
        return prefill_seconds(request, self._engine.scheduler, self._engine.memory)

    def hold(self, *, held: bool) -> None:
        """Give no slot to what waits, until told otherwise."""
        self._engine.hold(held=held)

    def warm(self) -> None:
        """Look anew at what is pinned."""
        self._engine.warm()

    def status(self) -> EngineStatus:
        """A snapshot; numbers may be one step apart."""
        engine, scheduler = self._engine, self._engine.scheduler
        pool = scheduler.pool if scheduler is not None else None
        counters: Counter[str] = Counter(scheduler.counters if scheduler is not None else ())
        counters["wakeups"] = self.wakeups
        return EngineStatus(
            state=engine.state,
            load_progress=engine.load_progress,
            error=engine.error.message if engine.error is not None else None,
            slots=self.limits.slots,
            n_ctx=self.limits.n_ctx,
            kv_cells=self.limits.kv_cells,
            running=len(scheduler.running) if scheduler is not None else 0,
            waiting=len(self._waiting),
            reserved_cells=pool.reserved_cells if pool is not None else 0,
            idle_cells=pool.idle_cells if pool is not None else 0,
            has_work=engine.has_work,
            counters=counters,
            step_seconds=engine.step_seconds,
            last_step=engine.last_progress,
            held=engine.held,
            pins=scheduler.pins.wanted if scheduler is not None else 0,
            pins_kept=scheduler.pins.kept if scheduler is not None else 0,
            preempted=scheduler.preempted if scheduler is not None else 0,
            host_bytes=engine.memory.nbytes if engine.memory is not None else 0,
            host_entries=len(engine.memory) if engine.memory is not None else 0,
        )

    def slot_views(self) -> list[SlotView]:
        """One entry per slot; empty while loading."""
        scheduler = self._engine.scheduler
        if scheduler is None:
            return []
        views = []
        for slot in scheduler.pool.slots:
            sequence = slot.sequence
            views.append(
                SlotView(
                    index=slot.index,
                    running=sequence is not None,
                    request_id=sequence.request.request_id if sequence is not None else None,
                    n_ctx=self.limits.n_ctx,
                    prompt_tokens=sequence.prompt_length if sequence is not None else 0,
                    computed_tokens=slot.cells,
                    cached_tokens=sequence.cached if sequence is not None else 0,
                    generated_tokens=sequence.generated if sequence is not None else 0,
                    reserved_cells=slot.reserved,
                )
            )
        return views

    def _check(self) -> None:
        engine = self._engine
        if self._closed and engine.state is EngineState.READY:
            raise Draining("The server is shutting down.")
        match engine.state:
            case EngineState.READY:
                return
            case EngineState.LOADING:
                raise self._loading()
            case EngineState.DEAD:
                cause = engine.error.message if engine.error is not None else "The engine stopped."
                raise EngineDead(cause)
            case EngineState.STOPPED:
                message = "The server is shutting down."
                raise Draining(message)

    def _loading(self) -> ModelLoading:
        done = self._engine.load_progress
        elapsed = self._clock.monotonic() - self._engine.load_started
        left = elapsed * (1 - done) / done if done > 0 else max(elapsed, 1.0)
        return ModelLoading(f"The model is loading, {done:.0%} done.", retry_after=max(1.0, left))

    # On the engine thread

    def _publish(self, events: list[tuple[str, Event]]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _notify(self, state: EngineState) -> None:
        if self._loop is not None:
            ready = state is EngineState.READY
            self._loop.call_soon_threadsafe(self._loaded.set if ready else self._ended)

    # On the event loop

    def _deliver(self, events: list[tuple[str, Event]]) -> None:
        self.wakeups += 1
        for request_id, event in events:
            stream = self._streams.get(request_id)
            if stream is None:  # abandoned: it had its end
                continue
            if isinstance(event, Started):
                self._waiting.pop(request_id, None)
            elif isinstance(event, Finished | Failed):
                self._waiting.pop(request_id, None)
                del self._streams[request_id]
            stream.push(event)

    def _ended(self) -> None:
        """The thread is gone."""
        self._end_streams()
        self._stopped.set()

    def _end_streams(self) -> None:
        """Nobody may wait for the thread any more, nor come in while those who did are told."""
        self._closed = True
        error = self._engine.error or Draining(
            "The server shut down before the answer was complete."
        )
        if not isinstance(error, EngineDead | Draining):
            error = EngineDead(error.message)
        for stream in self._streams.values():
            stream.push(Failed(error, Usage(len(stream.request.prompt), 0, 0)))
        self._streams.clear()
        self._waiting.clear()
        self._loaded.set()
