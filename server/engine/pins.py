"""Prompts that are computed before anybody asks, and kept in host memory whatever else needs room."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.core.request import GenerationRequest
from server.engine.host_memory import BLOCK, Entry, HostMemory
from server.engine.limits import SchedulerLimits
from server.engine.plan import MemoryEdit, Park
from server.engine.prefix_index import token_key
from server.engine.sequence import BACKGROUND
from server.engine.slots import Slot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pin:
    """The beginning of an agent's prompts, all of it public."""

    name: str
    """Whose, for people."""
    tokens: Sequence[int]


FindPins = Callable[[], Sequence[Pin]]
"""Says what is to be kept, once the model is loaded; it may change with the date."""


class Pins:
    """What is wanted, what is being computed, and what is kept. Belongs to the engine thread.

    Pins take at most half of an engine's host memory. A prompt that does not fit there, or an engine without such
    memory, is computed all the same, and stays as long as any other prefix: the log says so.
    """

    def __init__(
        self, limits: SchedulerLimits, host: HostMemory | None, counters: Counter[str]
    ) -> None:
        """`host`: where they are kept."""
        self._limits = limits
        self._host = host
        self._counters = counters
        self._names: dict[bytes, str] = {}
        """Key → whose, of all that is wanted."""
        self._kept: dict[bytes, Entry] = {}
        self._computing: dict[str, bytes] = {}
        """Request id → key."""
        self._number = 0

    @property
    def wanted(self) -> int:
        """How many prompts are to be kept."""
        return len(self._names)

    @property
    def kept(self) -> int:
        """How many of them are in host memory."""
        return len(self._kept)

    def want(self, pins: Sequence[Pin]) -> list[GenerationRequest]:
        """Keep these from now on and no others; return the requests that compute what is not there yet."""
        names: dict[bytes, str] = {}
        for pin in pins:
            if self._worth_it(pin):
                names.setdefault(token_key(pin.tokens), pin.name)
        for key in [key for key in self._kept if key not in names]:
            self._release(key)
        self._names = names
        if names and self._host is None:
            log.warning(
                "Pinned prompts are computed now, but there is no memory to keep them in: they go when their KV "
                "cells are needed. Set engine.host_cache; the unified KV layout needs flash attention for it."
            )
        tokens = {token_key(pin.tokens): pin.tokens for pin in pins}
        there = {*self._kept, *self._computing.values()}
        return [self._request(key, tokens[key]) for key in names if key not in there]

    def computed(self, request_id: str, slot: Slot) -> list[MemoryEdit]:
        """Return how what a request of `want` has left in its slot is kept. It has ended, however."""
        key = self._computing.pop(request_id, None)
        if self._host is None or key is None or slot.key != key:
            return []
        return [Park(slot.index, slot.scope, slot.key, slot.public, pin=True)]

    def ended(self, request_id: str) -> None:
        """Note that one of these has ended without a slot."""
        self._computing.pop(request_id, None)

    def may_keep(self, key: bytes, nbytes: int) -> bool:
        """Tell whether a prompt that is computed is to be kept; `nbytes`: what it takes."""
        host = self._host
        if host is None or key not in self._names or key in self._kept:
            return False
        held = sum(entry.state.nbytes for entry in self._kept.values())
        if held + nbytes <= host.share // 2:
            return True
        self.refused(key, nbytes)
        return False

    def keep(self, key: bytes, entry: Entry) -> None:
        """Hold on to what was saved."""
        entry.pins += 1
        self._kept[key] = entry
        self._counters["pinned"] += 1

    def refused(self, key: bytes, nbytes: int) -> None:
        """Say that a prompt is not kept, and what to do."""
        self._counters["pin_refused"] += 1
        log.warning(
            "The pinned prompt of %s takes %.0f MiB and is not kept: pins may take half of this model's part of "
            "engine.host_cache. Raise that, or pin fewer prompts.",
            self._names.get(key, "a model"),
            nbytes / 2**20,
        )

    def _worth_it(self, pin: Pin) -> bool:
        count, most = len(pin.tokens), self._limits.n_ctx - 1
        if BLOCK <= count <= most:
            return True
        if count < BLOCK:
            log.info("The pinned prompt of %s has %d tokens: too few to be kept", pin.name, count)
        else:
            log.warning(
                "The pinned prompt of %s has %d tokens, and n_ctx is %d: nobody can use it.",
                *(pin.name, count, self._limits.n_ctx),
            )
        return False

    def _release(self, key: bytes) -> None:
        entry = self._kept.pop(key)
        entry.pins -= 1

    def _request(self, key: bytes, tokens: Sequence[int]) -> GenerationRequest:
        """One token is sampled, and read by nobody."""
        self._number += 1
        request_id = f"pin:{self._number}"
        self._computing[request_id] = key
        return GenerationRequest(
            request_id=request_id,
            prompt=tokens,
            max_tokens=1,
            public_tokens=len(tokens),
            rank=(BACKGROUND, 0.0, self._number),
        )
