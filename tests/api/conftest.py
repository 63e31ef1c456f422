"""Fixtures of the HTTP tests."""

from __future__ import annotations

import pytest

from tests.serving import Stack


@pytest.fixture
def anyio_backend():
    # The loop that the server runs on; it differs from asyncio's own in how connections end.
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def stack():
    made = Stack()
    yield made
    assert made.admission.outstanding == 0
    made.service.shutdown()
