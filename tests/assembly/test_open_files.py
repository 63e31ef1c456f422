"""Room for as many connections as the settings promise."""

from __future__ import annotations

import logging
import resource

import pytest

from server.assembly import open_files
from server.assembly.open_files import make_room


@pytest.fixture
def limits(monkeypatch):
    """The process's limits, as the test sets them; none is really changed."""
    state = {"now": (256, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: state["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, pair: state.update(now=pair))
    return state


def test_the_limit_of_open_files_is_raised_as_far_as_is_needed(limits, caplog) -> None:
    make_room(1000)

    assert limits["now"] == (1000 + open_files._OTHER_FILES, 4096)
    assert caplog.records == []


@pytest.mark.parametrize("now", [(100_000, 100_000), (resource.RLIM_INFINITY,) * 2])
def test_a_limit_that_is_high_enough_is_left_alone(limits, now) -> None:
    limits["now"] = now
    make_room(1000)

    assert limits["now"] == now


def test_a_limit_that_cannot_be_raised_is_told_with_what_helps(limits, caplog) -> None:
    caplog.set_level(logging.WARNING)
    make_room(10_000)

    assert limits["now"] == (4096, 4096)
    assert "ulimit -n" in caplog.text
    assert "server.max_connections" in caplog.text
    assert str(4096 - open_files._OTHER_FILES) in caplog.text


def test_no_limit_at_all_is_room_enough(limits) -> None:
    limits["now"] = (256, resource.RLIM_INFINITY)
    make_room(1000)

    assert limits["now"] == (1000 + open_files._OTHER_FILES, resource.RLIM_INFINITY)
