"""One injector per row of the fault table in ARCHITECTURE.md, by the row's id."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest

from server.engine.plan import DecodeCode
from server.engine.recovery import NO_CELLS_RETRIES
from server.gateway import gpu_shedding
from server.gateway.gpu_guard import GuardState
from server.gateway.routing import Routes
from server.store.connection import FILE, open_database
from server.store.keys import KeyRepository
from server.store.refusals import StoreError
from tests.faults.house import House
from tests.remotes import Behaviour, Exchange, FakeRemote, chunk, distant, remote_server

Inject = Callable[[House], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """How a fault is brought about."""

    inject: Inject
    """Entered with the engine at rest before its next decode call; left when all has been seen."""
    running: bool
    """Whether the request that it hits is generating by then, or yet to be sent."""
    stall_after: float = 60.0
    card: bool = False
    """Whether it takes a machine with a card."""
    counts: float = 1.0
    """What the row's metric grows by, at least."""


FAULTS: dict[str, Fault] = {}
SIGNALS = {"worker-aborts": signal.SIGABRT, "worker-killed": signal.SIGKILL}
"""Faults that end the serving process: what it is sent."""
_Injector = Callable[[House], AsyncIterator[None]]


def fault(
    name: str,
    *,
    running: bool = False,
    stall_after: float = 60.0,
    card: bool = False,
    counts: float = 1.0,
) -> Callable[[_Injector], None]:
    """Add an injector to `FAULTS`."""

    def add(injector: _Injector) -> None:
        inject = contextlib.asynccontextmanager(injector)
        FAULTS[name] = Fault(inject, running, stall_after, card, counts)

    return add


def _decode(name: str, *codes: DecodeCode) -> None:
    async def inject(house: House) -> AsyncIterator[None]:
        house.backend.will_return(*codes)
        yield

    fault(name, running=True)(inject)


_decode("decode-no-cells", DecodeCode.NO_CELLS)
_decode("decode-no-cells-for-good", *[DecodeCode.NO_CELLS] * (NO_CELLS_RETRIES + 1))
_decode("decode-aborted", DecodeCode.ABORTED)
_decode("decode-invalid", DecodeCode.INVALID)
_decode("decode-failed", DecodeCode.FAILED)
_decode("decode-failed-twice", DecodeCode.FAILED, DecodeCode.FAILED)


@fault("decode-raises", running=True)
async def decode_raises(house: House) -> AsyncIterator[None]:
    house.backend.raises = True
    yield


@fault("decode-hangs", running=True, stall_after=2.0)
async def decode_hangs(house: House) -> AsyncIterator[None]:
    house.hangs = True
    yield
    house.backend.gate.free()


@fault("sampler-cannot-be-made")
async def sampler_cannot_be_made(house: House) -> AsyncIterator[None]:
    house.backend.refuse_victim = True
    yield


@fault("sampler-raises", running=True)
async def sampler_raises(house: House) -> AsyncIterator[None]:
    house.backend.fail_victim = True
    yield


@fault("detokenizer-raises")
async def detokenizer_raises(house: House) -> AsyncIterator[None]:
    house.backend.poisoned = True
    house.backend.breakable.lossy.broken = True
    yield


@fault("template-raises")
async def template_raises(house: House) -> AsyncIterator[None]:
    house.victims_fields["chat_template_kwargs"] = {"broken": True}
    yield


@fault("tokenizer-raises")
async def tokenizer_raises(house: House) -> AsyncIterator[None]:
    house.backend.breakable.broken = True
    yield


@fault("store-full")
async def store_full(house: House) -> AsyncIterator[None]:
    with open_database(house.directory) as database:
        keys = KeyRepository(database)
        pages = database.rows("PRAGMA page_count")[0][0]
        database.rows(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="Look at the disk"):
            create_many(keys)
        yield


def create_many(keys: KeyRepository) -> None:
    for number in range(10_000):
        keys.create(f"another {number}", 0)


@fault("store-damaged")
async def store_damaged(house: House) -> AsyncIterator[None]:
    path = house.directory / FILE
    damaged = path.with_name("damaged")
    damaged.write_bytes(b"not a database " * 1000)
    damaged.replace(path)
    yield


@fault("store-locked")
async def store_locked(house: House) -> AsyncIterator[None]:
    house.view.close()
    with contextlib.closing(sqlite3.connect(house.directory / FILE)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM keys WHERE name = 'nobody'")
        yield
        other.rollback()


@fault("nvml-fails", card=True)
async def nvml_fails(house: House) -> AsyncIterator[None]:
    assert house.machine is not None
    house.machine.lose_driver()
    await house.guard_is(GuardState.BLIND)
    yield


@fault("nvml-hangs", card=True)
async def nvml_hangs(house: House) -> AsyncIterator[None]:
    assert house.machine is not None
    guard, clock = house.stack.guard, house.stack.clock
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_shedding, "_STILL_SECONDS", 0.5)
        house.machine.state.hang = 1
        await house.guard_is(GuardState.BLIND)
        while not guard.beat().still(clock.monotonic()):  # noqa: ASYNC110 - only time brings it about
            await asyncio.sleep(0.01)
        yield


@fault("event-loop-stalls", running=True, counts=5.0)
async def event_loop_stalls(house: House) -> AsyncIterator[None]:
    asyncio.get_running_loop().call_soon(time.sleep, 5)
    yield


def _remote(name: str, behaviour: Behaviour) -> None:
    """Add a fault of a remote's: it answers the victim by `behaviour`, and later ones as it should."""

    async def inject(house: House) -> AsyncIterator[None]:
        async with remote_server(FakeRemote(next=[behaviour])) as remote:
            far = distant(house.stack, "far", remote.url, read_timeout=0.5)
            house.stack.service.router.routes = Routes(remotes={"far": far})
            house.model = "far"
            try:
                yield
            finally:
                await far.remote.close()

    fault(name)(inject)


async def _break_off(exchange: Exchange) -> None:
    await exchange.say(chunk("only "))
    raise ConnectionError


async def _talk_nonsense(exchange: Exchange) -> None:
    await exchange.say("<html>", "[DONE]")


_remote("remote-hangs", Exchange.gone)
_remote("remote-breaks-off", _break_off)
_remote("remote-talks-nonsense", _talk_nonsense)
