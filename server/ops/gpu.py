"""NVIDIA cards, read through NVML. A machine without card or driver has none, and that is no error."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

_LOG = logging.getLogger("onegpu.gpu")


@dataclass(frozen=True, slots=True)
class Card:
    """One card. Sizes in bytes."""

    index: int
    name: str
    total: int
    free: int
    """What nobody uses now, other processes' share taken off."""
    compute_capability: tuple[int, int]
    driver: str
    bus_id: str = ""
    """Place on the PCI bus as CUDA writes it, `0000:3b:00.0`."""

    @property
    def architecture(self) -> str:
        """What CMake's CUDA_ARCHITECTURES calls it: `86`, `90`."""
        major, minor = self.compute_capability
        return f"{major}{minor}"


def read_cards(nvml: Any = None) -> list[Card]:
    """Read all cards, in NVML's order; [] where there is no card, driver or library.

    llama.cpp numbers them otherwise: `server.llama.main_card`. A card that is divided (MIG) counts as its
    smallest instance. `nvml` stands in for pynvml in tests. A card that cannot be read is logged and left out.
    """
    with _session(nvml) as library:
        if library is None:
            return []
        driver = _text(library.nvmlSystemGetDriverVersion())
        cards = []
        for index in range(library.nvmlDeviceGetCount()):
            try:
                cards.append(_read(library, index, driver))
            except library.NVMLError as error:
                _LOG.warning("GPU %d cannot be read: %s", index, error)
        return cards


@contextmanager
def _session(nvml: Any) -> Iterator[Any]:
    """Give the initialised library, or None."""
    library = nvml
    if library is None:
        # Imported late: it is not needed, and may be missing, where there is no card.
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            yield None
            return
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        _LOG.debug("no GPU: %s", error)
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _read(library: Any, index: int, driver: str) -> Card:
    card = library.nvmlDeviceGetHandleByIndex(index)
    # A program gets one instance of a divided card: its memory counts, not the whole card's.
    handle = _least_instance(library, card) if is_divided(library, card) else card
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    major, minor = library.nvmlDeviceGetCudaComputeCapability(card)
    return Card(
        index,
        _text(library.nvmlDeviceGetName(handle)),
        int(memory.total),
        int(memory.free),
        (int(major), int(minor)),
        driver,
        _bus_id(_text(library.nvmlDeviceGetPciInfo(card).busId)),
    )


def is_divided(library: Any, card: Any) -> bool:
    """Tell whether the card is in MIG mode; most know no such mode."""
    try:
        current, _ = library.nvmlDeviceGetMigMode(card)
    except library.NVMLError:
        return False
    return bool(current)


def _least_instance(library: Any, card: Any) -> Any:
    """Return the smallest instance of a divided card: a plan for it fits any that CUDA may choose.

    Raises NVML's error where there is none: then no program can use the card.
    """
    found = []
    for index in range(library.nvmlDeviceGetMaxMigDeviceCount(card)):
        with suppress(library.NVMLError):  # places without an instance
            found.append(library.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
    if not found:
        return library.nvmlDeviceGetMigDeviceHandleByIndex(card, 0)
    return min(found, key=lambda handle: int(library.nvmlDeviceGetMemoryInfo(handle).total))


def _bus_id(text: str) -> str:
    """Write NVML's `00000000:3B:00.0` with CUDA's four digits of the domain."""
    domain, _, place = text.lower().partition(":")
    return f"{domain[-4:]}:{place}"


def _text(value: str | bytes) -> str:
    # Releases of the bindings before 12 return bytes.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
