"""One set of weights with one context: an engine that comes and goes, and who holds on to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from server.core.errors import OnegpuError
from server.engine.interface import Engine, EngineStatus, ModelInfo, SlotView, Tokenizer
from server.gateway.lane import Lane
from server.gateway.memory import Footprint
from server.gateway.ticket import Hold


class HostState(StrEnum):
    """Where a host stands."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"
    """The last load failed; the next request tries again."""


class HostedEngine(Engine, Protocol):
    """An engine from its start to its end; each load has a fresh one."""

    def start(self) -> None:
        """Begin to load, in a thread of its own."""
        ...

    async def wait_loaded(self) -> None:
        """Wait for the end of the load. Raises what made it fail."""
        ...

    async def stop(self) -> None:
        """End after the current step; returns once its memory is free."""
        ...

    def abandon(self) -> None:
        """Give up on one that does not end: its streams end with an error."""
        ...


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What a host is made of."""

    name: str
    """For logs and metrics: the first name that it is served under."""
    slots: int
    n_ctx: int
    """Most tokens of one sequence."""
    kv_cells: int
    footprint: Footprint
    make: Callable[[], HostedEngine]
    """Makes an engine that is not started yet. Raises `OnegpuError`."""
    keep_alive: float | None = None
    """Idle seconds after which it is unloaded; None: never."""


class Host:
    """The mutable side: state, engine, holders. Belongs to the event loop; `HostManager` moves it."""

    def __init__(self, spec: HostSpec, lane: Lane, now: float) -> None:
        """Start unloaded. `lane`: where its requests wait; `now`: monotonic seconds."""
        self.spec = spec
        self.lane = lane
        self.state = HostState.UNLOADED
        self.engine: HostedEngine | None = None
        """There from the start of a load to the end of the unloading."""
        self.error: OnegpuError | None = None
        """Why the last load failed."""
        self.holders = 0
        """Leases out; none may be cut by unloading."""
        self.closing = False
        """Lets nobody in any more, because it is to be unloaded as soon as the last one leaves."""
        self.leaving = False
        """Somebody asked for it to be unloaded."""
        self.last_used = now
        self.load_started = now
        self.load_seconds: float | None = None
        """How long the last load took."""
        self.loads = 0
        self.past: Counter[str] = Counter()
        """Counters of engines that are gone."""
        self.past_seconds = 0.0

    @property
    def loaded(self) -> bool:
        """Whether it takes memory, or may."""
        return self.state in (HostState.LOADING, HostState.READY, HostState.UNLOADING)

    @property
    def open(self) -> bool:
        """Whether a request is let in at once."""
        return self.state is HostState.READY and not self.closing

    def hold(self, held: Hold | None) -> None:
        """Let nothing begin here, or let it begin again. What runs goes on."""
        if self.engine is not None:
            self.engine.hold(held=held is not None)
        self.lane.hold(held)

    def expires(self) -> float | None:
        """Monotonic time at which it is unloaded if nobody comes; None: not by itself."""
        idle = self.state is HostState.READY and self.holders == 0
        keep = self.spec.keep_alive
        return self.last_used + keep if idle and keep is not None else None

    def progress(self) -> float:
        """Part that is loaded, 0 to 1."""
        if self.state is HostState.LOADING and self.engine is not None:
            return self.engine.status().load_progress
        return 1.0 if self.state is HostState.READY else 0.0

    def status(self) -> EngineStatus | None:
        """The engine's snapshot, with the counters of those before it; None while there is none."""
        return None if self.engine is None else self.engine.status()

    def slot_views(self) -> list[SlotView]:
        """One entry per slot; empty while nothing is loaded."""
        return [] if self.engine is None else self.engine.slot_views()

    def counters(self) -> tuple[Counter[str], float]:
        """The engines' counters and their seconds in decode calls, since the process began."""
        status = self.status()
        if status is None:
            return self.past, self.past_seconds
        return self.past + Counter(status.counters), self.past_seconds + status.step_seconds


@dataclass(slots=True)
class Lease:
    """Keeps a host loaded until `release`."""

    host: Host
    engine: HostedEngine
    info: ModelInfo
    tokenizer: Tokenizer
    _release: Callable[[Host], None] = field(repr=False)
    released: bool = False

    def release(self) -> None:
        """Let go. Idempotent."""
        if not self.released:
            self.released = True
            self._release(self.host)
