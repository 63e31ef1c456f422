"""A build of llama.cpp without GPU support on a machine that has a GPU: said, never served silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Named(Protocol):
    """A card, as far as a message names it."""

    @property
    def name(self) -> str:
        """What the driver calls it."""
        ...


def gpu_mismatch(cards: Sequence[Named], supports_offload: bool) -> str | None:  # noqa: FBT001 - llama.cpp's answer
    """Return what to do when llama.cpp was built for the CPU and a card is here; None when all is well.

    `supports_offload` is `llama_supports_gpu_offload()`: false too for a CUDA build whose driver finds no card.
    """
    if supports_offload or not cards:
        return None
    names = ", ".join(card.name for card in cards)
    return (
        f"This machine has an NVIDIA card ({names}), but llama.cpp as installed here cannot use it: the model would "
        "run on the CPU, many times slower. Run `make install`, which builds for the card and says what is missing, "
        "or use the container (docs/gpu.md). If the CPU is meant: --allow-cpu, or model.n_gpu_layers: 0."
    )
