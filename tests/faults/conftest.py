"""Fixtures of the fault tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend():
    return "asyncio", {"use_uvloop": True}
