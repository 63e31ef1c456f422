"""What all tests of the command share."""

import pytest


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` is called in the tests' own process, which has no command line to start itself again."""
    monkeypatch.setenv("ONEGPU_SERVER__SUPERVISED", "false")
