"""One choice of a request: what its events tell of it, and what is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from server.core.events import Delta, Event, Started
from server.core.request import GenerationRequest
from server.engine.interface import TokenStreamLike
from server.gateway.entitlement import cost
from server.gateway.fair_queue import Priority
from server.gateway.telemetry import Telemetry


@dataclass(slots=True)
class Choice:
    """What is known so far; times are seconds since its request joined the order."""

    request: GenerationRequest
    prompt: int
    """Which of the request's prompts it answers."""
    stream: TokenStreamLike | None = None
    """None while it waits in the line."""
    started: bool = False
    """Whether it has got a slot."""
    first_at: float | None = None
    last_at: float | None = None
    generated: int = 0
    """Tokens so far."""
    cached_tokens: int = 0
    missed: str | None = None
    """Why it found no prefix to share."""
    ended: bool = False
    reader: asyncio.Task[None] | None = None

    @property
    def cost(self) -> float:
        """Service that it really took."""
        if not self.started:
            return 0.0
        return cost(len(self.request.prompt) - self.cached_tokens, self.generated)

    def note(
        self, events: Sequence[Event], now: float, telemetry: Telemetry, priority: Priority
    ) -> None:
        """Learn from events that came together."""
        tokens = 0
        for event in events:
            if isinstance(event, Delta):
                tokens += len(event.token_ids)
                self.generated += len(event.token_ids)
            elif isinstance(event, Started):
                self.started = True
                self.cached_tokens = event.cached_tokens
                self.missed = event.missed
                telemetry.queue_wait(now, priority)
            else:
                self.ended = True
                self.generated = event.usage.completion_tokens
                self.cached_tokens = event.usage.cached_tokens
                self.report(telemetry)
        if tokens:
            if self.last_at is None:
                self.first_at = now
                telemetry.first_token(now)
            else:
                telemetry.token_gap(now - self.last_at, tokens)
            self.last_at = now

    def report(self, telemetry: Telemetry) -> None:
        """Report its tokens at its end; one that had no slot has used none."""
        if self.started:
            telemetry.usage(len(self.request.prompt), self.cached_tokens, self.generated)
