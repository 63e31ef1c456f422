"""One API request in progress: its choices' events, its timeouts, and its one end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from server.chat.shape import ReplyShape
from server.core.clock import Clock
from server.core.errors import DeadlineUnreachable, OnegpuError, QueueTimeout
from server.core.events import Event, Failed, Finished, FinishReason, Started
from server.core.request import GenerationRequest
from server.engine.interface import Engine, TokenStreamLike
from server.gateway.choice import Choice
from server.gateway.crash_record import Trace
from server.gateway.deadline import Deadline
from server.gateway.entitlement import cost
from server.gateway.fair_queue import Rank
from server.gateway.host import Lease
from server.gateway.lane import Lane
from server.gateway.patience import Patience, TimeLimits
from server.gateway.rate_limit import Grant
from server.gateway.telemetry import Telemetry
from server.gateway.ticket import Outlook, Ticket
from server.gateway.watchdog import EngineWatch

Batch = list[tuple[int, Event]]
"""Events with the number of the choice they belong to, in order."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """Who answers in place of the model that was asked for, and why."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class GenerationContext:
    """The parts that a generation works with."""

    engine: Engine
    lane: Lane
    telemetry: Telemetry
    clock: Clock
    times: TimeLimits
    engines: EngineWatch
    arrived: float
    """When the request came, in monotonic seconds."""
    trace: Trace


class Generation:
    """The events of `n` choices per prompt. One reader; `close()` belongs in its `finally`."""

    def __init__(
        self, model: str, context: GenerationContext, ticket: Ticket, grant: Grant, lease: Lease
    ) -> None:
        """`model`: the name it is served under. Owns ticket, grant and lease from here on."""
        self.model = model
        self.lease = lease
        self.stand_in: StandIn | None = None
        """Set where this answers for another model."""
        self.dropped_turns = 0
        """Oldest turns of the conversation that were left out because they did not fit."""
        self.context = context
        self.prompts: list[list[int]] = []
        self.shapes: list[ReplyShape] = []
        """How the answers to each prompt are taken apart."""
        self.choices: list[Choice] = []
        self.closed = False
        self.opened_at = context.clock.monotonic()
        self._ticket = ticket
        self._grant = grant
        self._patience = Patience(
            context.engine, context.engines, context.times, model, context.lane.overdue
        )
        self._pending: Batch = []
        self._wake = asyncio.Event()
        self._deadline = Deadline()
        self._failure: Exception | None = None

    def attach(self, prompts: list[list[int]], requests: Sequence[GenerationRequest]) -> None:
        """Join the order with the requests of all choices, prompt by prompt.

        Raises `RateLimited`, `DeadlineUnreachable`, and what the engine refuses at once.
        """
        n = len(requests) // len(prompts)
        self.prompts = prompts
        self.opened_at = self.context.clock.monotonic()
        self._patience.begin(self.opened_at - self.context.arrived)
        output = sum(request.max_tokens for request in requests)
        self._grant.reserve(self.prompt_tokens + output)
        costs = [cost(len(request.prompt), request.max_tokens) for request in requests]
        self.choices = [Choice(request, number // n) for number, request in enumerate(requests)]
        try:
            self._ticket.price(costs, self._begin, self._prefill_seconds(requests))
        except DeadlineUnreachable:
            self.choices = []  # refused: nothing of it was aborted
            raise
        if self._failure is not None:
            raise self._failure

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(map(len, self.prompts))

    @property
    def cached_tokens(self) -> int:
        """Of the prompts' tokens, those that no choice had to compute."""
        least: dict[int, int] = {}
        for choice in self.choices:
            before = least.get(choice.prompt, choice.cached_tokens)
            least[choice.prompt] = min(before, choice.cached_tokens)
        return sum(least.values())

    @property
    def prefix_missed(self) -> str | None:
        """Why the first choice that shared nothing did not. For the log alone: it can tell of other keys' prompts."""
        return next((choice.missed for choice in self.choices if choice.missed), None)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices so far."""
        return sum(choice.generated for choice in self.choices)

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.ended for choice in self.choices)

    @property
    def started(self) -> bool:
        """Whether any choice has got a slot: from then on a retry would repeat work."""
        return any(choice.started for choice in self.choices)

    @property
    def seconds_to_first_token(self) -> float | None:
        """From submission to the first token of any choice."""
        times = [choice.first_at for choice in self.choices if choice.first_at is not None]
        return min(times, default=None)

    async def first_events(self, hold: float) -> bool:
        """Wait at most `hold` seconds for a token or an end; True if one came.

        Raises what made the first choice to end fail, so that it can still have an HTTP status.
        """
        until = self.context.clock.monotonic() + hold
        held: Batch = []
        try:
            while (left := until - self.context.clock.monotonic()) > 0:
                batch = await self._next(left)
                held += batch
                if any(not isinstance(event, Started) for _, event in batch):
                    self._raise_failure(batch)
                    return True
            return False
        finally:
            self._pending[:0] = held

    async def events(self, idle: float | None = None) -> AsyncIterator[Batch]:
        """Yield what is there, wake-up by wake-up, until every choice has ended.

        With `idle`, an empty batch after that many seconds without events. Raises a choice's
        failure after what came before it, and `EngineTimeout`.
        """
        left = len(self.choices)
        while left:
            batch = await self._next(idle)
            ended = sum(isinstance(event, Finished | Failed) for _, event in batch)
            if ended and any(isinstance(event, Failed) for _, event in batch):
                if before := [item for item in batch if not isinstance(item[1], Failed)]:
                    yield before
                self._raise_failure(batch)
            left -= ended
            yield batch

    def queue_status(self) -> Outlook | None:
        """Return the place in the line of the choice that starts first; None once one has."""
        return self._ticket.outlook()

    def close(self, *, charge: bool = True) -> None:
        """End it: frees slots within one step, the places in the line, and the model. Idempotent.

        `charge`: against the key's limits; not for what another model does all over again.
        The only place where the ticket, the grant and the lease of a generation are released.
        """
        if self.closed:
            return
        self.closed = True
        self._deadline.close()
        if not self.complete:
            self.context.telemetry.aborted()
        for choice in self.choices:
            if not choice.ended:
                choice.report(self.context.telemetry)
            # Before the ticket goes: the slot of what is aborted is then there for who is next.
            if choice.stream is not None:
                choice.stream.abort()
            if choice.reader is not None:
                choice.reader.cancel()
        self._ticket.release(cost=self._cost())
        self._grant.release(self._used() if charge else None)
        self.context.trace.leave()
        self.lease.release()

    def _used(self) -> int | None:
        """Tokens to be charged; None where no work was done."""
        if not self._ticket.started:
            return None
        return self.prompt_tokens + self.completion_tokens

    def _cost(self) -> float:
        """Service that it really took."""
        return sum(choice.cost for choice in self.choices)

    def _prefill_seconds(self, requests: Sequence[GenerationRequest]) -> float:
        """Seconds that the prompts should take, each counted once."""
        first = {
            choice.prompt: request for choice, request in zip(self.choices, requests, strict=True)
        }
        return sum(map(self.context.engine.prefill_seconds, first.values()))

    def _begin(self, index: int, rank: Rank) -> None:
        """Hand choice `index` to the engine: its turn has come."""
        choice = self.choices[index]
        try:
            self.context.trace.began()
            choice.stream = self.context.engine.submit(
                replace(choice.request, rank=rank), functools.partial(self._watch, index)
            )
        except Exception as error:  # noqa: BLE001 - handed to the reader, who waits for it
            self._failure = error
            self.context.trace.ended(completed=False)
            self._ticket.note_ended(index)
        else:
            if len(self.choices) > 1:
                choice.reader = asyncio.create_task(self._read(index, choice.stream))
        self._wake.set()

    def _watch(self, index: int, event: Event) -> None:
        """Tell line and record what the engine does, whether somebody reads or not."""
        if isinstance(event, Started):
            self._ticket.note_started(index)
        else:
            done = isinstance(event, Finished) and event.reason is not FinishReason.ABORTED
            self.context.trace.ended(completed=done)
            self._ticket.note_ended(index)

    async def _next(self, idle: float | None) -> Batch:
        """Take what is there, or wait for it, at most `idle` seconds."""
        if not self._pending and self._failure is None:
            await self._wait(idle)
        if not self._pending and self._failure is not None:
            raise self._failure
        if not self.complete:
            self._patience.check_end()
        batch, self._pending = self._pending, []
        self._wake.clear()
        return batch

    async def _wait(self, idle: float | None) -> None:
        """Wait for events, at most `idle` seconds. Raises as `Patience.check`."""
        loop = asyncio.get_running_loop()
        until = None if idle is None else loop.time() + idle
        while True:
            waiting = all(choice.stream is None for choice in self.choices)
            look = self._patience.next_look(started=self.started, waiting=waiting)
            try:
                with self._deadline.until(look if until is None else min(until, look)):
                    await self._receive()
                self._patience.heard()
                return
            except TimeoutError:
                if not self.complete:
                    self._patience.check(started=self.started, waiting=waiting)
            if until is not None and loop.time() >= until:
                return

    async def _receive(self) -> None:
        """Put the next events into `_pending`. Losing none when cancelled is the streams' part."""
        while not self._pending and self._failure is None:
            choice = self.choices[0]
            if len(self.choices) == 1 and choice.stream is not None:
                self._note(0, choice, await choice.stream.next_events())
                return
            self._wake.clear()
            await self._wake.wait()

    async def _read(self, number: int, stream: TokenStreamLike) -> None:
        try:
            while not self.choices[number].ended:
                self._note(number, self.choices[number], await stream.next_events())
                self._wake.set()
        except Exception as error:  # noqa: BLE001 - handed to the reader, who waits for it
            self._failure = error
            self._wake.set()

    def _note(self, number: int, choice: Choice, events: list[Event]) -> None:
        context = self.context
        self._pending += [(number, event) for event in events]
        waited = context.clock.monotonic() - self.opened_at
        choice.note(events, waited, context.telemetry, self._ticket.standing.priority)

    def _raise_failure(self, batch: Batch) -> None:
        for _, event in batch:
            if not isinstance(event, Failed):
                continue
            error: OnegpuError = event.error
            if isinstance(error, QueueTimeout) and error.retry_after is None:
                # The engine knows neither rates nor why it is held, the line does.
                raise self.context.lane.overdue(error.message)
            # One error may end many requests: none shall carry the others' tracebacks.
            raise error.with_traceback(None)
