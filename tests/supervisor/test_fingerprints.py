"""What runs at a crash, kept in the page."""

from __future__ import annotations

import os

import pytest

from server.supervisor.fingerprints import LIFETIME, Fingerprints
from server.supervisor.page import Page, shared_file

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


@pytest.fixture
def page():
    descriptor = shared_file("test", Page.SIZE)
    made = Page(descriptor)
    os.close(descriptor)
    yield made
    made.close()


def test_what_ran_at_a_crash_is_known_to_the_next_process(page) -> None:
    worker = Fingerprints(page)
    for one in (A, B, C):
        worker.add(one)
    worker.remove(B)

    assert Fingerprints(page).crashed(100.0) == 2

    page.renew({}, 0)
    after = Fingerprints(page)
    assert after.crashes(A) == (1, 100.0)
    assert after.crashes(B) == (0, 0.0)
    assert Fingerprints(page).crashed(101.0) == 0  # it ran in the other process only


def test_crashes_add_up_until_one_completes(page) -> None:
    for now in (1.0, 2.0):
        worker = Fingerprints(page)
        worker.add(A)
        worker.add(B)
        if now == 2.0:
            worker.remove(B)
            worker.clear(B)
        Fingerprints(page).crashed(now)
    found = Fingerprints(page)
    assert found.crashes(A) == (2, 2.0)
    assert found.crashes(B) == (0, 0.0)
    # What one process has cleared is not there again in the next.
    found.clear(A)
    assert Fingerprints(page).crashes(A) == (0, 0.0)


def test_a_crash_of_long_ago_does_not_count(page) -> None:
    Fingerprints(page).add(A)
    Fingerprints(page).crashed(1.0)
    Fingerprints(page).add(A)
    Fingerprints(page).crashed(1.0 + LIFETIME)
    assert Fingerprints(page).crashes(A) == (1, 1.0 + LIFETIME)


def test_a_process_that_was_killed_leaves_no_suspects(page) -> None:
    Fingerprints(page).add(A)
    page.renew({}, 0)
    assert Fingerprints(page).crashed(1.0) == 0


def test_more_than_there_is_room_for_are_not_remembered_and_harm_nobody(page) -> None:
    many = [number.to_bytes(16, "big") for number in range(1, 1500)]
    for now in (1.0, 2.0):
        worker = Fingerprints(page)
        for one in many:
            worker.add(one)
        assert Fingerprints(page).crashed(now) == 1024
    found = Fingerprints(page)
    assert sum(found.crashes(one)[0] == 2 for one in many) == 1024
    for one in many:
        found.remove(one)
    found.add(A)
    assert Fingerprints(page).crashed(3.0) == 1
    assert Fingerprints(page).crashes(A) == (0, 0.0)  # all places are taken
