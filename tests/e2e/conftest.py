"""One server with the demo model for all tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.live import LiveServer


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    with LiveServer("--slots", "4", "--n-ctx", "2048") as running:
        yield running
