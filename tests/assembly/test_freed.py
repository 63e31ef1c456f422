"""What a worker waits for before it plans: memory that the one before it had."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from server.assembly import machine
from server.assembly.freed import cards_to_plan_for
from server.ops.gpu import Card
from server.settings import Settings
from server.supervisor.page import Page, shared_file
from tests.fakes import FakeClock

GIB = 2**30


def card(free: int) -> Card:
    return Card(0, "RTX", 24 * GIB, free, (8, 6), "1")


@pytest.fixture
def page() -> Iterator[Page]:
    descriptor = shared_file("page", Page.SIZE)
    with contextlib.closing(Page(descriptor)) as made:
        os.close(descriptor)
        yield made


class Time(FakeClock):
    """Sleeping moves it on; the memory is a matter of time."""

    def __init__(self, *free: tuple[float, int]) -> None:
        """`free`: from how many seconds on there is how much."""
        super().__init__()
        self._begin, self._free = self.now, free

    def read(self) -> list[Card]:
        left = [size for since, size in self._free if self.passed >= since - 1e-9]
        return [card(left[-1])] if left else []

    @property
    def passed(self) -> float:
        return self.now - self._begin


def seen(page: Page | None, time: Time) -> tuple[int, float]:
    cards = cards_to_plan_for(page, time.read, time, time.advance)
    return sum(one.free for one in cards), round(time.passed, 1)


def test_the_first_worker_waits_for_nothing(page) -> None:
    assert seen(page, Time((0, 3 * GIB), (0.1, 9 * GIB))) == (3 * GIB, 0)


def test_without_a_supervisor_or_cards_there_is_no_wait(page) -> None:
    assert seen(None, Time((0, GIB))) == (GIB, 0)
    page.gpu_free = 20 * GIB
    assert seen(page, Time()) == (0, 0)


def test_the_next_one_waits_until_the_memory_is_back(page) -> None:
    seen(page, Time((0, 20 * GIB)))
    page.renew({}, 0)
    late = Time((0, 2 * GIB), (0.5, 9 * GIB), (1.2, 20 * GIB - 1), (1.5, 24 * GIB))
    assert seen(page, late) == (20 * GIB - 1, 1.2)
    assert page.gpu_free == 20 * GIB - 1


def test_memory_that_is_somebody_elses_by_now_is_not_waited_for(page) -> None:
    page.gpu_free = 20 * GIB
    assert seen(page, Time((0, 12 * GIB))) == (12 * GIB, 1.0)
    assert seen(page, Time((0, 12 * GIB))) == (12 * GIB, 0)


def test_the_wait_ends_though_memory_comes_in_drops(page) -> None:
    page.gpu_free = 20 * GIB
    assert seen(page, Time(*((at / 2, at) for at in range(100))))[1] == 10.0


def test_a_driver_that_goes_ends_the_wait(page) -> None:
    page.gpu_free = 20 * GIB
    answers = iter([[card(GIB)], []])
    time = Time()
    cards = cards_to_plan_for(page, lambda: next(answers, []), time, time.advance)
    assert cards == []


def test_a_plan_is_made_for_what_is_free_in_the_end(page, monkeypatch) -> None:
    reads = iter([[card(GIB)], [card(20 * GIB)]])
    monkeypatch.setattr(machine, "read_cards", lambda: next(reads))
    monkeypatch.setattr(machine, "supports_offload", lambda: True)
    page.gpu_free = 20 * GIB
    memory = machine.machine_memory(Settings(), gpu_wanted=True, page=page)
    assert memory.gpu_free == 20 * GIB
