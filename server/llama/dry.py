"""DRY samplers, cloned from prototypes.

Making one searches the whole vocabulary for every sequence breaker: about 50 ms for 152,000 tokens,
in which all streams stand still. Requests mostly share their DRY settings, so one is kept of each.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from dataclasses import dataclass, field

from server.llama.native import Address, Library

_MOST_PROTOTYPES = 8


@dataclass(frozen=True, slots=True)
class DrySettings:
    """Arguments of `llama_sampler_init_dry`."""

    multiplier: float
    base: float
    allowed_length: int
    window: int
    breakers: tuple[str, ...]


@dataclass(slots=True)
class DryPrototypes:
    """The settings used last, and a sampler of each that never accepted a token."""

    library: Library
    vocab: Address
    _made: OrderedDict[DrySettings, Address] = field(default_factory=OrderedDict)

    def make(self, settings: DrySettings) -> Address:
        """Return a new sampler, owned by the caller."""
        prototype = self._made.get(settings)
        if prototype is None:
            prototype = self._made[settings] = self._init(settings)
            if len(self._made) > _MOST_PROTOTYPES:
                self.library.sampler_free(self._made.popitem(last=False)[1])
        self._made.move_to_end(settings)
        return self.library.sampler_clone(prototype)

    def free(self) -> None:
        """Free the prototypes; clones live on. Harmless when repeated."""
        while self._made:
            self.library.sampler_free(self._made.popitem()[1])

    def _init(self, settings: DrySettings) -> Address:
        breakers = [text.encode() for text in settings.breakers]
        return self.library.sampler_init_dry(
            self.vocab,
            settings.multiplier,
            settings.base,
            settings.allowed_length,
            settings.window,
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        )
