"""Watching a live server from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx


def running_slots(http: httpx.Client) -> int:
    """How many slots hold a running request."""
    return sum(slot["running"] for slot in http.get("/slots").json())


def idle(http: httpx.Client) -> bool:
    """Whether nothing runs and no cell is reserved."""
    return all(
        not slot["running"] and not slot["reserved_cells"] for slot in http.get("/slots").json()
    )


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what another process does; there is nothing to be notified by."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)
