"""Fixtures for all tests; those of one layer live in its directory."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from tests.nvml_machine import Machine, compile_library

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


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a compiled driver library without a driver."""
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(
    nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Machine]]:
    """Make a machine with cards that the real pynvml of this process sees until the test ends."""
    import pynvml

    # Where pynvml keeps the library once it is open, and the functions that it found there.
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(nvml_library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    with ExitStack() as stack:

        def make(*totals: int) -> Machine:
            made = stack.enter_context(Machine(tmp_path / "nvml", *totals))
            monkeypatch.setenv("FAKE_NVML", str(made.path))
            return made

        yield make
