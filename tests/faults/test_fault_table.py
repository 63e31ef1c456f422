"""What ARCHITECTURE.md says of each fault is what happens, over HTTP, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.backend import VICTIM
from tests.faults.house import House, house
from tests.faults.injectors import FAULTS, SIGNALS
from tests.faults.table import ROWS, Row

pytestmark = pytest.mark.anyio
LONGEST = 60
"""Seconds in which everybody must have an answer; only a hang takes so long."""


def test_every_fault_has_a_row_and_an_injector() -> None:
    assert ROWS.keys() == FAULTS.keys() | SIGNALS.keys()
    assert len(ROWS) > 10


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", FAULTS)
async def test_what_comes_of_it(request, tmp_path, name: str, *, stream: bool) -> None:
    row, fault = ROWS[name], FAULTS[name]
    machine = request.getfixturevalue("machine")(8 << 30, 24 << 30) if fault.card else None
    async with (
        asyncio.timeout(LONGEST),
        house(tmp_path, machine, stream=stream, stall_after=fault.stall_after) as made,
    ):
        before = made.count(row.counted)
        neighbour = made.ask("a neighbour", 60)
        await made.engine.until(lambda: len(made.engine.requests) == 1)
        await made.engine.until(lambda: made.engine.tokens(0) > 1, stepping=True)
        victim = None
        if fault.running:
            victim = made.ask(VICTIM, 12)
            await made.engine.until(lambda: len(made.engine.requests) == 2)
            await made.engine.until(lambda: made.engine.tokens(1) > 1, stepping=True)
        async with fault.inject(made):
            if not made.hangs:
                made.backend.gate.free()
            if victim is None:
                victim = made.ask(VICTIM, 12, **made.victims_fields)
            seen = Row(
                request=await victim.outcome(),
                neighbours=await neighbour.outcome(),
                later=await made.ask("a later one").outcome(),
                live=await made.live(),
                counted=row.counted,
            )
        assert seen == row
        await check_texts(made, {0: neighbour, 1: victim})
        assert row.counted == "–" or made.count(row.counted) >= before + fault.counts


async def check_texts(made: House, answers) -> None:
    """An answer that is told to be whole is the one that it would have been without the fault."""
    for index, answer in answers.items():
        if await answer.outcome() == "200":
            assert await answer.text() == made.engine.expected(made.engine.requests[index])


async def test_an_engine_that_comes_round_serves_on(tmp_path) -> None:
    async with (
        asyncio.timeout(LONGEST),
        house(tmp_path, stream=True, stall_after=1.0) as made,
    ):
        hung = made.ask("hello")
        assert await hung.outcome() == "engine_stalled"
        assert await made.live() == "stalled"
        made.backend.gate.free()
        await made.engine.until(lambda: not made.engine.status().has_work)
        assert await made.live() == "ok"
        assert await made.ask("hello again").outcome() == "200"
