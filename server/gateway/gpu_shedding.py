"""The guards of all cards that models are on, and what their states mean for the line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.core.beat import Beat
from server.core.clock import Clock
from server.core.errors import GpuMemoryShort
from server.gateway.gpu_guard import CardGuard, GuardLimits, GuardState, Readings, Sample, Share
from server.gateway.host import Host, HostState
from server.gateway.ticket import Hold

log = logging.getLogger(__name__)

_MIB = 2**20
_LONGEST_RETRY = 120.0
"""Longest time a client is told to stay away; the official SDK obeys no more."""
_STILL_SECONDS = 60.0
"""A read of the cards that takes longer will not end; a driver in trouble takes seconds."""
_HELD = (GuardState.HOLDING, GuardState.SHEDDING)


@dataclass(frozen=True, slots=True)
class WatchedCard:
    """A card, and the models that have something on it."""

    bus_id: str
    """As CUDA writes it, `0000:3b:00.0`."""
    name: str
    guard: CardGuard
    hosts: tuple[Host, ...]
    context: int = 0
    """Bytes that CUDA takes beside the models, once."""

    def share(self) -> Share:
        """What its models take by plan, now."""
        coming = sum(h.spec.footprint.gpu for h in self.hosts if h.state is HostState.LOADING)
        loaded = sum(h.spec.footprint.gpu for h in self.hosts if h.loaded)
        loads = sum(h.loads for h in self.hosts)
        return Share(loaded - coming, coming, self.context, loads)

    def told(self) -> str:
        """Say how it stands, for people."""
        guard, sample = self.guard, self.guard.sample
        if sample is None or guard.headroom is None:
            why = guard.failure or "it does not answer"
            return f"{self.name} cannot be read ({why}); nothing is held back for it."
        short = "" if guard.state is GuardState.OPEN else f"; {guard.high // _MIB} MiB are needed"
        owed = sample.free - guard.headroom
        kept = f", {owed // _MIB} MiB of them for a model that is loading" if owed else ""
        told = f"{sample.free // _MIB} of {sample.total // _MIB} MiB are free on {self.name}{kept}{short}."
        if guard.futile:
            told += (
                f" The models themselves take {guard.share.whole // _MIB} MiB by plan, more than "
                "gateway.gpu_guard.used: nothing will begin until that or memory.reserve is raised."
            )
        return told


class GpuGuard:
    """Holds the lanes of a card's models while its memory is short. Belongs to the event loop."""

    def __init__(
        self, cards: Sequence[WatchedCard], clock: Clock, opened: Callable[[], None], off: str = ""
    ) -> None:
        """`opened`: called when something may begin again. `off`: why there are no cards."""
        self.cards = tuple(cards)
        self.off = off
        self._clock = clock
        self._opened = opened
        self._heard_at = self._looked_at = clock.monotonic()
        self._pause = self._silence / 4

    def observe(self, readings: Readings) -> None:
        """Take what was read off the cards."""
        self._heard_at = self._clock.monotonic()
        for card in self.cards:
            reading = readings.get(card.bus_id)
            if reading is not None:
                self._move(card, reading)

    def relimit(self, limits: GuardLimits) -> None:
        """Go by other limits from the next sample on."""
        for card in self.cards:
            card.guard.limits = limits

    @property
    def _silence(self) -> float:
        return max((card.guard.limits.silence for card in self.cards), default=0.0)

    def tick(self) -> None:
        """Look for cards of which nothing was heard."""
        now = self._clock.monotonic()
        late, self._looked_at = now - self._looked_at > 2 * self._pause, now
        if late:  # this process stood still, and whoever reads the cards with it
            return
        for card in self.cards:
            self._move(card, None)

    async def watch(self) -> None:
        """Call `tick` every now and then, until cancelled. Returns at once where there are no cards."""
        while self.cards:
            await asyncio.sleep(self._pause)
            self.tick()

    def beat(self) -> Beat:
        """Tell when a read last ended, with whatever outcome."""
        return Beat(self._heard_at, bool(self.cards), max(_STILL_SECONDS, self._silence))

    def reason(self, host: Host) -> GpuMemoryShort | None:
        """Say why a new request for `host` would be sent away; None: it would not."""
        for card in self.cards:
            if card.guard.state is GuardState.SHEDDING and host in card.hosts:
                return self._error(card)
        return None

    def message(self) -> str:
        """Say how all cards stand, for people."""
        if not self.cards:
            return f"off: {self.off}"
        return " ".join(card.told() for card in self.cards)

    def _move(self, card: WatchedCard, reading: Sample | str | None) -> None:
        guard, before = card.guard, card.guard.state
        if isinstance(reading, Sample):
            guard.observe(reading, card.share())
        elif reading is not None:
            guard.fail(reading, self._clock.monotonic())
        else:
            guard.tick(self._clock.monotonic())
        if guard.state is not before:
            self._apply(card)

    def _apply(self, card: WatchedCard) -> None:
        """Let the lanes follow a change of state."""
        state = card.guard.state
        level = logging.INFO if state is GuardState.OPEN else logging.WARNING
        log.log(level, "GPU guard: %s. %s", state.value, card.told())
        hold = None
        if state in _HELD:
            hold = Hold(lambda: self._error(card), shut=state is GuardState.SHEDDING)
        for host in card.hosts:
            host.hold(hold)
        if hold is None:
            self._opened()

    def _error(self, card: WatchedCard) -> GpuMemoryShort:
        advice = card.guard.advice(self._clock.monotonic())
        return GpuMemoryShort(
            f"GPU memory is short, so nothing new begins: {card.told()} Try again later.",
            retry_after=min(max(1.0, advice), _LONGEST_RETRY),
        )
