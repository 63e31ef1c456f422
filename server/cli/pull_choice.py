"""Which quantization fits this machine: asked of the planner, header by header."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.catalog.download_choice import QuantChooser
    from server.settings import Settings


def chooser_for(settings: Settings) -> QuantChooser:
    """Return the chooser for the card of `settings`, the card that is there, or the memory."""
    from server.catalog.download_choice import by_size, size_text

    if settings.memory.vram is not None:
        return by_size(settings.memory.vram, f"{size_text(settings.memory.vram)} of GPU memory")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return by_size(memory, f"{size_text(memory)} of memory")
