"""The whole run: every scenario, round after round, on one server after the other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.bench.driver import Driver, Limits, Peer
from server.bench.scenarios import Row, Scenario
from server.bench.statistics import Measured
from server.bench.texts import Texts

_TICK = 1.0


class Watcher(Protocol):
    """Is told how far the run is."""

    live: bool
    """Whether somebody watches: `doing` is called every second, too."""

    def doing(self, what: str, answered: int, seconds: float) -> None:
        """So many answers came in since `what` began."""

    def measured(self, measured: Measured) -> None:
        """Take the outcome of one row against one server."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    scenarios: Sequence[tuple[Scenario, int]]
    """With the users of each."""
    rounds: int
    seed: int
    tokens_per_word: float
    limits: Limits = field(default_factory=Limits)

    def rows(self, scenario: Scenario, users: int, number: int) -> Sequence[Row]:
        """Return what is asked in round `number`: the same of every server, of no other round."""
        texts = Texts(f"{self.seed}/{number}/{scenario.name}/{users}", self.tokens_per_word)
        return scenario.rows(texts, users)


async def run(plan: Plan, peers: Sequence[Peer], watcher: Watcher) -> None:
    """Measure everything; each outcome goes to `watcher`."""
    for scenario, users in plan.scenarios:
        for number in range(plan.rounds):
            for peer in peers:
                for row in plan.rows(scenario, users, number):
                    where = f"{title(scenario.name, row.phase, users)}, round {number + 1}/{plan.rounds}, {peer.label}"
                    driver = Driver(peer, row, plan.limits)
                    used = time.process_time()
                    async with _watched(driver, where, watcher):
                        await driver.play()
                    watcher.measured(
                        Measured(
                            scenario=scenario.name,
                            phase=row.phase,
                            users=users,
                            server=peer.label,
                            round=number,
                            seconds=driver.seconds,
                            outcomes=driver.outcomes,
                            unasked=driver.unasked,
                            client_cpu=time.process_time() - used,
                            first_of=scenario.first_of,
                            gap_of=scenario.gap_of,
                        )
                    )


def title(scenario: str, phase: str, users: int) -> str:
    """Name a row."""
    return f"{scenario}{' ' if phase else ''}{phase} @{users}"


@contextlib.asynccontextmanager
async def _watched(driver: Driver, where: str, watcher: Watcher) -> AsyncIterator[None]:
    """Tell `watcher` after every answer and, if somebody watches, every second."""
    begin = time.monotonic()

    def tell() -> None:
        watcher.doing(where, len(driver.outcomes), time.monotonic() - begin)

    async def tick() -> None:
        while True:
            await asyncio.sleep(_TICK)
            tell()

    tell()
    driver.told = tell
    ticking = asyncio.create_task(tick()) if watcher.live else None
    try:
        yield
    finally:
        if ticking is not None:
            ticking.cancel()
