"""The real pynvml over a fake driver library: samples, errors, a driver that goes and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from server.core.clock import SystemClock
from server.gateway.gpu_guard import Readings, Sample
from server.ops.gpu import read_cards
from server.ops.gpu_sampler import GpuSampler, NvmlReader
from tests.fakes import FakeClock
from tests.nvml_machine import LOST, NO_PERMISSION, Machine

pytestmark = pytest.mark.anyio

GIB = 1 << 30
FIRST, SECOND = "0000:3a:00.0", "0000:3b:00.0"

CHILD = """
import json, sys
from dataclasses import asdict
from server.core.clock import SystemClock
from server.ops.gpu import read_cards
from server.ops.gpu_sampler import NvmlReader
reader = NvmlReader(sys.argv[1:], SystemClock())
print(json.dumps([card.bus_id for card in read_cards()]), flush=True)
for _ in sys.stdin:
    found = {bus: one if isinstance(one, str) else asdict(one) for bus, one in reader.read().items()}
    print(json.dumps(found), flush=True)
reader.close()
"""


@pytest.fixture
def anyio_backend():
    return "asyncio"


def reader(*bus_ids: str) -> NvmlReader:
    return NvmlReader(bus_ids or (FIRST,), FakeClock(5.0))


def test_the_cards_are_the_ones_that_the_planner_knows(machine) -> None:
    made = machine(24 * GIB, 80 * GIB)
    made.cards[1].others = 3 * GIB
    cards = read_cards()
    assert [card.bus_id for card in cards] == [FIRST, SECOND]
    read = NvmlReader([card.bus_id for card in cards], FakeClock(5.0)).read()
    assert read == {FIRST: Sample(5.0, 24 * GIB, 24 * GIB), SECOND: Sample(5.0, 80 * GIB, 77 * GIB)}


def test_what_this_process_has_is_told_where_the_driver_knows_it(machine) -> None:
    made = machine(24 * GIB)
    made.cards[0].others = 2 * GIB
    made.own(0, 10 * GIB)
    one = reader()
    assert one.read() == {FIRST: Sample(5.0, 24 * GIB, 12 * GIB, 10 * GIB)}
    made.own(0, 10 * GIB, told=False)  # a container: the driver knows another number
    assert one.read() == {FIRST: Sample(5.0, 24 * GIB, 12 * GIB, None)}
    made.cards[0].processes_error = NO_PERMISSION
    assert one.read() == {FIRST: Sample(5.0, 24 * GIB, 12 * GIB, None)}


def test_one_session_serves_all_reads(machine) -> None:
    made = machine(24 * GIB)
    one = reader()
    for _ in range(5):
        one.read()
    assert (made.state.sessions, made.state.reads) == (1, 5)
    one.close()
    one.close()
    assert made.state.sessions == 0


def test_a_card_that_is_lost_says_so_and_leaves_the_other_alone(machine) -> None:
    made = machine(24 * GIB, 8 * GIB)
    one = reader(FIRST, SECOND)
    one.read()
    made.cards[0].error = LOST
    for _ in range(3):
        read = one.read()
        assert read[FIRST] == "GPU is lost"
        assert read[SECOND] == Sample(5.0, 8 * GIB, 8 * GIB)
    made.cards[0].error = 0
    assert one.read()[FIRST] == Sample(5.0, 24 * GIB, 24 * GIB)


def test_a_driver_that_goes_is_found_again(machine) -> None:
    made = machine(24 * GIB)
    one = reader()
    one.read()
    made.lose_driver()
    assert one.read() == {FIRST: "Driver Not Loaded"}
    assert one.read() == {FIRST: "Driver Not Loaded"}
    made.bring_driver_back()
    made.cards[0].others = GIB
    assert one.read() == {FIRST: Sample(5.0, 24 * GIB, 23 * GIB)}


def test_of_a_divided_card_nothing_is_known(machine) -> None:
    made = machine(24 * GIB)
    made.cards[0].divided = 1
    one = reader()
    assert "it is divided (MIG)" in str(one.read()[FIRST])
    assert made.state.sessions == 1  # no error: no reason to begin anew at every look
    one.close()


def test_a_card_that_is_not_there_says_so(machine) -> None:
    machine(24 * GIB)
    assert reader("0000:99:00.0").read() == {"0000:99:00.0": "Not Found"}


def test_without_a_driver_library_there_is_an_answer_too(monkeypatch) -> None:
    import pynvml

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert reader().read() == {FIRST: "NVML Shared Library Not Found"}


async def test_samples_come_to_the_event_loop_from_another_thread(machine) -> None:
    made = machine(24 * GIB)
    found: asyncio.Queue[Readings] = asyncio.Queue()
    sampler = GpuSampler(NvmlReader([FIRST], SystemClock()), 0.001)
    sampler.start(asyncio.get_running_loop(), found.put_nowait)
    try:
        async with asyncio.timeout(30):
            first = await found.get()
            made.lose_driver()
            while (lost := await found.get()) == first or not isinstance(lost[FIRST], str):
                pass
            made.bring_driver_back()
            while isinstance((await found.get())[FIRST], str):
                pass
    finally:
        sampler.stop()
    assert sampler.thread is not None
    await asyncio.to_thread(sampler.thread.join, 30)
    assert not sampler.thread.is_alive()
    assert made.state.sessions == 0


async def test_a_driver_that_hangs_holds_up_nobody(machine) -> None:
    made = machine(24 * GIB)
    found: asyncio.Queue[Readings] = asyncio.Queue()
    sampler = GpuSampler(NvmlReader([FIRST], SystemClock()), 0.001)
    made.state.hang = 1
    sampler.start(asyncio.get_running_loop(), found.put_nowait)
    sampler.stop()  # returns although the read does not
    assert sampler.thread is not None
    assert sampler.thread.is_alive()
    assert sampler.thread.daemon
    assert found.empty()
    made.state.hang = 0
    await asyncio.to_thread(sampler.thread.join, 30)
    assert not sampler.thread.is_alive()


async def test_a_sampler_outlives_its_event_loop_without_an_error(machine) -> None:
    made = machine(24 * GIB)
    made.state.hang = 1
    sampler = GpuSampler(NvmlReader([FIRST], SystemClock()), 0.001)
    loop = asyncio.new_event_loop()
    sampler.start(loop, print)
    loop.close()
    made.state.hang = 0
    assert sampler.thread is not None
    await asyncio.to_thread(sampler.thread.join, 30)
    assert not sampler.thread.is_alive()


def test_a_process_of_its_own_opens_the_library_by_its_name(nvml_library, tmp_path) -> None:
    """Nothing is patched: the loader finds libnvidia-ml.so.1 as it does on a GPU machine."""
    with Machine(tmp_path / "nvml", 24 * GIB, 8 * GIB) as made:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, FIRST, SECOND],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(nvml_library.parent),
                "FAKE_NVML": str(made.path),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with child:
            assert child.stdin is not None
            assert child.stdout is not None

            def read() -> dict:
                child.stdin.write("read\n")
                child.stdin.flush()
                return json.loads(child.stdout.readline())

            assert json.loads(child.stdout.readline()) == [FIRST, SECOND]
            assert read()[FIRST]["free"] == 24 * GIB
            made.cards[0].others = 23 * GIB
            made.cards[1].own, made.cards[1].pid = GIB, child.pid
            both = read()
            assert both[FIRST]["free"] == GIB
            assert (both[SECOND]["free"], both[SECOND]["own"]) == (7 * GIB, GIB)
            made.lose_driver()
            assert read()[FIRST] == "Driver Not Loaded"
            made.bring_driver_back()
            assert read()[FIRST]["free"] == GIB
            child.stdin.close()
        assert child.returncode == 0
        assert made.state.sessions == 0
