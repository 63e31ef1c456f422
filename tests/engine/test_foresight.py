"""What a prompt is expected to take: from slots and host memory as they are, whoever changes them meanwhile."""

from __future__ import annotations

import sys
import threading

import pytest

from server.engine.foresight import UNMEASURED_ROW, prefill_seconds
from server.engine.host_memory import HostBudget
from server.engine.pace import Work
from tests.factories import LoopHarness, make_limits, make_request

SYSTEM = "a system prompt that many requests begin with " * 8
LIMITS = make_limits(slots=2, n_ctx=1024, max_rows=128, prefill_rows=64)
ROW = 0.001


def harness(host: HostBudget | None = None) -> LoopHarness:
    made = LoopHarness(LIMITS, host=host)
    made.scheduler.pace.observe(Work(100, 1), 100 * ROW)
    return made


def rows(house: LoopHarness, text: str, **fields: object) -> float:
    """Rows that are expected to be computed."""
    request = make_request(text, **fields)  # type: ignore[arg-type]
    return prefill_seconds(request, house.scheduler, house.loop.memory) / ROW


def test_what_nobody_has_takes_all_its_rows():
    assert rows(harness(), SYSTEM) == pytest.approx(len(SYSTEM))


def test_before_anything_was_measured_a_row_has_a_stated_default():
    request = make_request(SYSTEM)
    assert prefill_seconds(request, None, None) == len(SYSTEM) * UNMEASURED_ROW
    unmeasured = LoopHarness(LIMITS)
    assert prefill_seconds(request, unmeasured.scheduler, None) == len(SYSTEM) * UNMEASURED_ROW


def test_what_is_cached_or_being_computed_is_not_counted():
    house = harness()
    house.submit(make_request(SYSTEM + "first", 2))
    house.step()
    running = house.scheduler.running[0]
    assert running.computed < len(SYSTEM)
    assert rows(house, SYSTEM + "second question") < 40
    house.run()
    assert rows(house, SYSTEM + "second question") < 40


def test_of_another_scope_and_without_reuse_everything_counts():
    house = harness()
    house.submit(make_request(SYSTEM + "first", 2))
    house.run()
    asked = SYSTEM + "second question"
    assert rows(house, asked, cache_scope="other") == pytest.approx(len(asked))
    assert rows(house, asked, reuse_prefix=False) == pytest.approx(len(asked))


def test_what_is_in_host_memory_counts_as_cached():
    house = harness(HostBudget(10**9))
    house.submit(make_request(SYSTEM + "first", 2))
    house.run()
    for letter in "xyz":
        house.submit(make_request(letter * 900, 2))
        house.run()
    assert house.scheduler.counters["parked"]
    held = [slot.key for slot in house.scheduler.pool.slots]
    assert not any(key.startswith(make_key(SYSTEM)) for key in held)
    assert rows(house, SYSTEM + "second question") < 100


def make_key(text: str) -> bytes:
    return b"".join(token.to_bytes(4, sys.byteorder) for token in text.encode())


def test_it_may_be_asked_while_the_engine_works():
    """The estimate may be off; it is a number, and asking breaks nothing."""
    house = harness(HostBudget(2 * 10**5))
    asked = [make_request(SYSTEM + "question"), make_request("x" * 600), make_request("b" * 300)]
    found: list[float] = []
    failed: list[Exception] = []
    begun, done = threading.Event(), threading.Event()

    def ask() -> None:
        begun.set()
        try:
            while not done.is_set():
                found.extend(
                    prefill_seconds(request, house.scheduler, house.loop.memory)
                    for request in asked
                )
        except Exception as error:  # noqa: BLE001 - told below
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        begun.wait()
        for number in range(40):
            for text in (SYSTEM + f"{number}", "xyz"[number % 3] * 700, f"{number:03d}" * 100):
                house.submit(
                    make_request(text, 2, cache_scope="ab"[number % 2] if number % 5 else "")
                )
            house.run()
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not failed
    assert house.scheduler.counters["parked"]
    assert found
    assert all(seconds >= 0 for seconds in found)
