"""Fixtures for all tests; those of one layer live in its directory."""

import os

import pytest
from hypothesis import settings

NO_KEYS = "/nonexistent/onegpu"

# Machines that run tests are loaded: a slow example is no failure.
settings.register_profile("onegpu", deadline=None)
settings.load_profile("onegpu")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ONEGPU_"):
            monkeypatch.delenv(name)
    # Nor from whoever runs the tests: keys of theirs would be asked for.
    monkeypatch.setenv("ONEGPU_DATA_DIR", NO_KEYS)
