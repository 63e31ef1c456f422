"""One API request in progress: its choices' events, its timeouts, and its one end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from server.core.clock import Clock
from server.core.errors import EngineTimeout, OnegpuError, QueueTimeout, TotalTimeout
from server.core.events import Delta, Event, Failed, Finished, Started
from server.engine.interface import Engine, TokenStreamLike
from server.gateway.admission import Lane, Ticket
from server.gateway.host import Lease
from server.gateway.telemetry import Telemetry

Batch = list[tuple[int, Event]]
"""Events with the number of the choice they belong to, in order."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """Where a request stands in the line."""

    position: int
    waiting: int
    seconds: float | None
    """Expected wait; None while nothing was measured."""


@dataclass(slots=True)
class Choice:
    """What is known of one choice so far; times are monotonic seconds."""

    stream: TokenStreamLike
    prompt: int
    """Which of the request's prompts it answers."""
    started_at: float | None = None
    first_at: float | None = None
    last_at: float | None = None
    generated: int = 0
    """Tokens so far."""
    cached_tokens: int = 0
    ended: bool = False
    reader: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class GenerationContext:
    """The parts that a generation works with."""

    engine: Engine
    lane: Lane
    telemetry: Telemetry
    clock: Clock
    read_timeout: float
    """Longest silence of the engine in seconds, once a slot was found."""
    queue_timeout: float
    """Seconds within which the engine finds a slot or fails the request itself."""
    total_timeout: float | None = None
    """Most seconds from submission to the last token; None: not limited."""


class Generation:
    """The events of `n` choices per prompt. One reader; `close()` belongs in its `finally`."""

    def __init__(
        self, model: str, context: GenerationContext, ticket: Ticket, lease: Lease
    ) -> None:
        """`model`: the name it is served under. Owns `ticket` and `lease` from here on."""
        self.model = model
        self.lease = lease
        self.dropped_turns = 0
        """Oldest turns of the conversation that were left out because they did not fit."""
        self.context = context
        self.prompts: list[list[int]] = []
        self.choices: list[Choice] = []
        self.closed = False
        self.opened_at = context.clock.monotonic()
        self._ticket = ticket
        self._pending: Batch = []
        self._wake = asyncio.Event()
        self._failure: Exception | None = None
        self._mark: float | None = None
        self._quiet_since = 0.0
        self._deadline = math.inf

    def attach(self, prompts: list[list[int]], streams: Sequence[TokenStreamLike]) -> None:
        """Take the prompts' tokens and the streams of all choices, prompt by prompt."""
        n = len(streams) // len(prompts)
        self.prompts = prompts
        self.opened_at = self.context.clock.monotonic()
        self._quiet_since = asyncio.get_running_loop().time()
        if self.context.total_timeout is not None:
            self._deadline = self._quiet_since + self.context.total_timeout
        self.choices = [Choice(stream, number // n) for number, stream in enumerate(streams)]
        if len(self.choices) > 1:
            for number, choice in enumerate(self.choices):
                choice.reader = asyncio.create_task(self._read(number, choice.stream))

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
        return any(choice.started_at is not None for choice in self.choices)

    @property
    def seconds_to_first_token(self) -> float | None:
        """From submission to the first token of any choice."""
        times = [choice.first_at for choice in self.choices if choice.first_at is not None]
        return min(times) - self.opened_at if times else None

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

    def queue_status(self) -> QueueStatus | None:
        """Return the place in the line of the choice that starts first; None once one has."""
        if self.started:
            return None
        engine = self.context.engine
        places = [engine.queue_position(choice.stream.request_id) for choice in self.choices]
        position = min((place for place in places if place is not None), default=None)
        if position is None:
            return None
        waiting = max(position, engine.status().waiting)
        return QueueStatus(position, waiting, self.context.lane.expected_wait(position))

    def close(self) -> None:
        """End it: frees slots within one step, the places in the line, and the model. Idempotent.

        The only place where the ticket and the lease of a generation are released.
        """
        if self.closed:
            return
        self.closed = True
        if not self.complete:
            self.context.telemetry.aborted()
        for choice in self.choices:
            if not choice.ended:
                self._count(choice)
            choice.stream.abort()
            if choice.reader is not None:
                choice.reader.cancel()
        self._ticket.release(served=self.started)
        self.lease.release()

    async def _next(self, idle: float | None) -> Batch:
        """Take what is there, or wait for it, at most `idle` seconds."""
        if not self._pending and self._failure is None:
            await self._wait(idle)
        if not self._pending and self._failure is not None:
            raise self._failure
        self._check_deadline()
        batch, self._pending = self._pending, []
        self._wake.clear()
        return batch

    async def _wait(self, idle: float | None) -> None:
        """Wait for events. Raises `EngineTimeout` after too long a silence, and `TotalTimeout`."""
        loop = asyncio.get_running_loop()
        until = math.inf if idle is None else loop.time() + idle
        while True:
            patience = self._patience()
            try:
                next_look = loop.time() + patience / 4
                async with asyncio.timeout_at(min(until, next_look, self._deadline)):
                    await self._receive()
                self._quiet_since = loop.time()
                return
            except TimeoutError:
                self._check_deadline()
                self._check_silence(loop.time(), patience)
            if loop.time() >= until:
                return

    def _check_deadline(self) -> None:
        if asyncio.get_running_loop().time() >= self._deadline and not self.complete:
            raise TotalTimeout(
                f"The answer was not complete after {self.context.total_timeout:g} s, the limit of "
                f"the model {self.model!r}; the generation was ended."
            )

    def _check_silence(self, now: float, patience: float) -> None:
        """A step is a sign of life, whoever it served: long prompts, ours or those before it, are no hang."""
        last_step = self.context.engine.status().last_step
        if last_step != self._mark:
            self._mark, self._quiet_since = last_step, now
        elif now - self._quiet_since >= patience:
            raise EngineTimeout(
                f"The engine was silent for {patience:g} s; the generation was ended."
            )

    async def _receive(self) -> None:
        """Put the next events into `_pending`. Losing none when cancelled is the streams' part."""
        if len(self.choices) == 1:
            choice = self.choices[0]
            self._note(0, choice, await choice.stream.next_events())
        else:
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
        now = self.context.clock.monotonic()
        telemetry = self.context.telemetry
        tokens = 0
        for event in events:
            self._pending.append((number, event))
            if isinstance(event, Delta):
                tokens += len(event.token_ids)
                choice.generated += len(event.token_ids)
            elif isinstance(event, Started):
                choice.started_at = now
                choice.cached_tokens = event.cached_tokens
                telemetry.queue_wait(now - self.opened_at)
            else:
                choice.ended = True
                choice.generated = event.usage.completion_tokens
                self._count(choice)
        if tokens:
            if choice.last_at is None:
                choice.first_at = now
                telemetry.first_token(now - self.opened_at)
            else:
                telemetry.token_gap(now - choice.last_at, tokens)
            choice.last_at = now

    def _count(self, choice: Choice) -> None:
        """Report the tokens of a choice that ends here; one that had no slot has used none."""
        if choice.started_at is not None:
            prompt = len(self.prompts[choice.prompt])
            self.context.telemetry.usage(prompt, choice.cached_tokens, choice.generated)

    def _raise_failure(self, batch: Batch) -> None:
        for _, event in batch:
            if not isinstance(event, Failed):
                continue
            error: OnegpuError = event.error
            if isinstance(error, QueueTimeout) and error.retry_after is None:
                # The engine knows no rates, the line does.
                advice = self.context.lane.retry_after()
                raise QueueTimeout(error.message, retry_after=advice)
            # One error may end many requests: none shall carry the others' tracebacks.
            raise error.with_traceback(None)

    def _patience(self) -> float:
        """Seconds of silence that are too long.

        In the line the engine's own deadline comes first; a read timeout later, it keeps none.
        """
        if self.started:
            return self.context.read_timeout
        return self.context.queue_timeout + self.context.read_timeout
