"""Which card `main_gpu` means: llama.cpp counts in CUDA's order, NVML in that of the bus."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, TypeVar

from server.core.errors import ConfigError

_LOG = logging.getLogger(__name__)


class Placed(Protocol):
    """A card, as far as it is told from others."""

    @property
    def name(self) -> str:
        """What the driver calls it."""
        ...

    @property
    def free(self) -> int:
        """Bytes that nobody uses now."""
        ...

    @property
    def bus_id(self) -> str:
        """Place on the PCI bus, `0000:3b:00.0`."""
        ...


Some = TypeVar("Some", bound=Placed)


def main_card(cards: Sequence[Some], main_gpu: int) -> Some:
    """Return the one of `cards` (at least one) that llama.cpp numbers `main_gpu`.

    Where llama.cpp does not tell, as a build for the CPU, it is the one with the least free memory: a
    plan for it fits any. Raises `ConfigError` for a number that llama.cpp has no card for.
    """
    if len(cards) == 1:
        return cards[0]
    order = llama_bus_ids()
    if order and main_gpu >= len(order):
        raise ConfigError(
            f"model.main_gpu is {main_gpu}, but llama.cpp sees {len(order)} GPUs, counted from 0. "
            "CUDA_VISIBLE_DEVICES decides which."
        )
    wanted = order[main_gpu].lower() if order else ""
    for card in cards:
        if card.bus_id == wanted:
            return card
    least = min(cards, key=lambda card: card.free)
    _LOG.warning(
        "which of %d GPUs llama.cpp numbers %d is not known; planning for the one with the least "
        "free memory, %s. memory.vram limits it further",
        len(cards),
        main_gpu,
        least.name,
    )
    return least


def llama_bus_ids() -> list[str]:
    """Return the places of the cards that llama.cpp sees, in its order."""
    # Imported here: the native library is slow to load, and only machines with several cards need it.
    from server.llama.devices import gpu_bus_ids  # noqa: PLC0415

    return gpu_bus_ids()
