"""Which slot has which sampler, and those of requests that have no slot for a while."""

from __future__ import annotations

from server.core.request import GenerationRequest
from server.llama.sampling import Sampler, SamplerSource, make_sampler


class SlotSamplers:
    """Owns every chain from its making to its end."""

    def __init__(self, source: SamplerSource, slots: int) -> None:
        """No slot has one at first."""
        self._source = source
        self._slots: list[Sampler | None] = [None] * slots
        self._aside: dict[str, Sampler] = {}
        """By request id."""

    def __getitem__(self, slot: int) -> Sampler | None:
        """Return that of `slot`."""
        return self._slots[slot]

    def open(self, slot: int, request: GenerationRequest) -> None:
        """Make that of `slot`, or go on with the one that was set aside. Raises as `make_sampler`."""
        self.close(slot)
        kept = self._aside.pop(request.request_id, None)
        self._slots[slot] = kept or make_sampler(self._source, request)

    def close(self, slot: int) -> None:
        """Free that of `slot`; harmless when there is none."""
        sampler = self._slots[slot]
        if sampler is not None:
            self._slots[slot] = None
            sampler.free()

    def set_aside(self, slot: int, request_id: str) -> None:
        """Keep a chain as it is, with its random state and what it looks back on."""
        sampler = self._slots[slot]
        if sampler is not None:
            self._slots[slot] = None
            self._aside[request_id] = sampler

    def forget(self, request_id: str) -> None:
        """Free one that was set aside; harmless when there is none."""
        sampler = self._aside.pop(request_id, None)
        if sampler is not None:
            sampler.free()

    def free(self) -> None:
        """Free all; harmless when repeated."""
        for slot in range(len(self._slots)):
            self.close(slot)
        for request_id in list(self._aside):
            self.forget(request_id)
