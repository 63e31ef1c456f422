"""Hosts over fake engines whose loads and ends the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from server.core.errors import OnegpuError
from server.engine.interface import EngineState
from server.gateway.host import Host, HostSpec
from server.gateway.hosts import HostManager
from server.gateway.line import Line, LineLimits
from server.gateway.memory import Budget, Footprint
from tests.fakes import FakeClock, FakeEngine


class House:
    """A manager of hosts by name, with everything that its engines did."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        budget: int | None,
        *,
        keep_alive: float | None = None,
        gated: bool = True,
    ) -> None:
        """`sizes`: bytes by name. `gated`: loads and ends wait for `come_up` and `let_end`."""
        self.clock = FakeClock()
        self.gated = gated
        self.engines: dict[str, list[FakeEngine]] = {name: [] for name in sizes}
        self.line = Line(LineLimits(max_queue=100), self.clock)
        self.hosts = {
            name: Host(self._spec(name, size, keep_alive), self.line.open_lane(2), self.clock.now)
            for name, size in sizes.items()
        }
        self.manager = HostManager(tuple(self.hosts.values()), Budget(cpu=budget), self.clock)
        self.budget = budget

    def _spec(self, name: str, size: int, keep_alive: float | None) -> HostSpec:
        return HostSpec(name, 2, 64, 128, Footprint(cpu=size), lambda: self._make(name), keep_alive)

    def _make(self, name: str) -> FakeEngine:
        engine = FakeEngine(gated=self.gated, held=asyncio.Event() if self.gated else None)
        self.engines[name].append(engine)
        return engine

    def engine(self, name: str) -> FakeEngine:
        """The latest one of a host."""
        return self.engines[name][-1]

    def loading(self) -> list[str]:
        """Hosts whose engine is between its start and the end of its load."""
        return [
            name
            for name, engines in self.engines.items()
            if engines and not engines[-1].loaded.is_set()
        ]

    def ending(self) -> list[str]:
        """Hosts whose engine was told to end and has not yet."""
        return [
            name
            for name, engines in self.engines.items()
            if engines and engines[-1].stopping and engines[-1].state is not EngineState.STOPPED
        ]

    def memory(self) -> int:
        """Bytes held by engines that were started and have not ended."""
        return sum(
            self.hosts[name].spec.footprint.cpu
            for name, engines in self.engines.items()
            for engine in engines
            if engine.starts and engine.state is not EngineState.STOPPED
        )

    def fail(self, name: str, error: OnegpuError) -> None:
        """End a load with an error."""
        self.engine(name).break_down(error)

    def let_end(self, name: str) -> None:
        """Let the engine that was told to end, end."""
        held = self.engine(name).held
        assert held is not None
        held.set()

    def states(self) -> dict[str, str]:
        return {name: host.state.value for name, host in self.hosts.items()}


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)
