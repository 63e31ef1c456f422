"""Reads the memory of cards, over and over, in a thread of its own.

NVML answers within a millisecond, or, when the driver is in trouble, after seconds or never: so it
is never called on the event loop, and the thread is one that the process does not wait for.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from server.core.clock import Clock
from server.gateway.gpu_guard import Readings, Sample
from server.ops.gpu import is_divided

log = logging.getLogger("onegpu.gpu")

_DIVIDED = "it is divided (MIG), and which part of it this process has is not known"


class _Unknown(Exception):
    """Its message is a reading: the memory that counts cannot be told."""


class NvmlReader:
    """A session with NVML that is opened again after every error. For one thread."""

    def __init__(self, bus_ids: Sequence[str], clock: Clock, nvml: Any = None) -> None:
        """`nvml` stands in for pynvml in tests. Nothing is opened yet."""
        self._bus_ids = tuple(bus_ids)
        self._clock = clock
        self._nvml = nvml
        self._handles: dict[str, Any] = {}
        self._open = False

    def read(self) -> dict[str, Sample | str]:
        """Return a sample of each card, or why there is none. Never raises for what NVML does."""
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 - a missing library is an OSError, and so on
            self.close()
            return dict.fromkeys(self._bus_ids, str(error))
        found: dict[str, Sample | str] = {}
        failed = False
        for bus_id in self._bus_ids:
            try:
                found[bus_id] = self._sample(bus_id)
            except _Unknown as told:
                found[bus_id] = str(told)
            except Exception as error:  # noqa: BLE001 - as above; the other cards are read on
                found[bus_id], failed = str(error), True
        if failed:
            # Handles do not outlive a driver that went away; the next read begins anew.
            self.close()
        return found

    def close(self) -> None:
        """End the session, if there is one. Errors of a driver that is gone are no news."""
        self._handles.clear()
        if self._open:
            self._open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                log.debug("NVML did not shut down: %s", error)

    def _begin(self) -> None:
        if self._nvml is None:
            self._nvml = importlib.import_module("pynvml")
        if not self._open:
            self._nvml.nvmlInit()
            self._open = True

    def _sample(self, bus_id: str) -> Sample:
        nvml = self._nvml
        handle = self._handles.get(bus_id)
        if handle is None:
            handle = nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
            if is_divided(nvml, handle):
                raise _Unknown(_DIVIDED)
            self._handles[bus_id] = handle
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return Sample(
            self._clock.monotonic(), int(memory.total), int(memory.free), self._own(handle)
        )

    def _own(self, handle: Any) -> int | None:
        """Return what this process has; None where the driver does not know it by this number."""
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._nvml.NVMLError:
            return None
        used = [one.usedGpuMemory for one in processes if one.pid == os.getpid()]
        return int(used[0]) if used and used[0] is not None else None


class GpuSampler:
    """Hands readings to the event loop, one every `interval` seconds."""

    def __init__(self, reader: NvmlReader, interval: float) -> None:
        """Nothing runs until `start`."""
        self._reader = reader
        self._interval = interval
        self._stopping = threading.Event()
        self.thread: threading.Thread | None = None

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Readings], None],
    ) -> None:
        """Read at once, and then on; `deliver` is called on `loop`."""
        self.thread = threading.Thread(
            target=self._run, args=(loop, deliver), name="gpu-sampler", daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        """End after the read in progress. Nobody waits for it: it may hang."""
        self._stopping.set()

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Readings], None],
    ) -> None:
        while not self._stopping.is_set():
            readings = self._reader.read()
            try:
                loop.call_soon_threadsafe(deliver, readings)
            except RuntimeError:  # the loop has ended while this read hung
                break
            self._stopping.wait(self._interval)
        self._reader.close()
