"""Real engines without their threads, in a time that stands still."""

from __future__ import annotations

import asyncio

from server.core.errors import EngineDead
from server.engine.inprocess import InProcessEngine
from server.engine.interface import EngineState
from server.engine.limits import SchedulerLimits
from tests.factories import FakeClock, ScriptedBackend


class Loop(asyncio.SelectorEventLoop):
    """Its time is the test's."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._test_clock = clock

    def time(self) -> float:
        return self._test_clock.now


class Stepped(InProcessEngine):
    """Without its thread: `step` is one turn of it."""

    def __init__(self, limits: SchedulerLimits, clock: FakeClock) -> None:
        self.backend = ScriptedBackend(limits)
        super().__init__(lambda _progress: self.backend, limits, clock)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._engine.load()
        self._loaded.set()

    async def stop(self) -> None:
        self._engine._shutdown()

    def step(self) -> None:
        if self._engine.state is not EngineState.READY:
            return
        try:
            self._engine.step()
        except Exception as error:  # noqa: BLE001 - as the thread does
            self._engine._die(EngineDead(str(error)))
            self._engine._shutdown()

    def check(self) -> None:
        scheduler = self._engine.scheduler
        if scheduler is not None and self._engine.state is EngineState.READY:
            scheduler.pool.check_integrity()
