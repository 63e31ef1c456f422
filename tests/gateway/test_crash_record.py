"""Requests that brought the process down: suspects one at a time, culprits not at all."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server.core.errors import QueueTimeout, RepeatedCrash
from server.gateway.crash_record import CrashRecord
from server.gateway.service import GenerationService
from server.gateway.spec import GenerationSpec, TextPrompt
from tests.fakes import FakeClock, FakeEngine
from tests.serving import MODEL, Stack

pytestmark = pytest.mark.anyio

POISON, OTHER = b"p" * 16, b"o" * 16
LIFETIME = 3600.0


class Memory:
    """Stands in for the page."""

    def __init__(self) -> None:
        self.running: list[bytes] = []
        self.held: dict[bytes, tuple[int, float]] = {}

    def add(self, fingerprint: bytes) -> None:
        assert fingerprint not in self.running
        self.running.append(fingerprint)

    def remove(self, fingerprint: bytes) -> None:
        self.running.remove(fingerprint)

    def crashes(self, fingerprint: bytes) -> tuple[int, float]:
        return self.held.get(fingerprint, (0, 0.0))

    def clear(self, fingerprint: bytes) -> None:
        del self.held[fingerprint]


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def stack(memory):
    made = Stack(engine=FakeEngine(manual=True))
    old = made.service
    made.service = GenerationService(
        old.router,
        old.hosts,
        made.admission,
        replace(old.limits, connect_timeout=30.0),
        FakeClock(now=100.0),
        crashes=CrashRecord(memory, FakeClock(now=100.0), LIFETIME),
    )
    old.shutdown()
    yield made
    made.service.shutdown()
    assert made.admission.outstanding == 0
    assert memory.running == []


def spec(fingerprint: bytes = POISON, **fields) -> GenerationSpec:
    prompts = (TextPrompt("hello"),)
    return GenerationSpec("id", MODEL, prompts, fingerprint=fingerprint, **fields)


async def test_a_request_is_noted_from_its_slot_to_its_end(stack, memory) -> None:
    generation = await stack.service.open(spec(n=2))
    assert memory.running == [POISON]
    generation.close()


async def test_one_that_waits_in_line_is_in_nobodys_hands(stack, memory) -> None:
    ahead = 2 * stack.engine.slots  # what the engine holds
    running = [await stack.service.open(spec(OTHER)) for _ in range(ahead)]
    waiting = await stack.service.open(spec())
    assert memory.running == [OTHER]
    waiting.close()
    for one in running:
        one.close()


async def test_one_without_a_fingerprint_is_not_remembered(stack, memory) -> None:
    generation = await stack.service.open(spec(b""))
    assert memory.running == []
    generation.close()


async def test_the_second_crash_is_the_last_one(stack, memory) -> None:
    memory.held[POISON] = (2, 90.0)
    with pytest.raises(RepeatedCrash, match="refused for 60 min"):
        await stack.service.open(spec())
    (await stack.service.open(spec(OTHER))).close()


async def test_a_crash_is_not_held_against_it_for_ever(stack, memory) -> None:
    memory.held[POISON] = (2, 100.0 - LIFETIME)
    (await stack.service.open(spec())).close()


async def test_suspects_run_one_at_a_time_and_others_beside_them(stack, memory) -> None:
    memory.held = {POISON: (1, 90.0), OTHER: (1, 90.0)}
    first = await stack.service.open(spec())
    second = asyncio.create_task(stack.service.open(spec(OTHER)))
    free = await stack.service.open(spec(b"f" * 16))
    assert memory.running == [POISON, b"f" * 16]
    assert not second.done()
    first.close()
    (await second).close()
    free.close()


async def test_one_that_completes_is_no_suspect_any_more(stack, memory) -> None:
    memory.held = {POISON: (1, 90.0)}
    generation = await stack.service.open(spec())
    (stream,) = stack.engine.streams
    stack.engine.begin(stream)
    stack.engine.finish(stream)
    async for _ in generation.events():
        pass
    assert memory.held == {}
    generation.close()


async def test_one_that_its_client_gave_up_stays_a_suspect(stack, memory) -> None:
    memory.held = {POISON: (1, 90.0)}
    (await stack.service.open(spec())).close()
    assert memory.held == {POISON: (1, 90.0)}


async def test_a_suspect_waits_only_for_so_long(memory) -> None:
    memory.held = {POISON: (1, 90.0)}
    record = CrashRecord(memory, FakeClock(now=100.0), LIFETIME)
    first = await record.enter(POISON, 1.0)
    with pytest.raises(QueueTimeout):
        await record.enter(POISON, 0.01)
    first.leave()
    first.leave()
    (await record.enter(POISON, 1.0)).leave()
