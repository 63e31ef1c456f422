"""One request to a remote: sent at its turn, read as it comes, ended in one place."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx2

from server.core.clock import Clock
from server.core.errors import Draining, OnegpuError, RemoteFailed, TotalTimeout
from server.gateway.entitlement import cost
from server.gateway.fair_queue import Rank
from server.gateway.generation import StandIn
from server.gateway.patience import TimeLimits
from server.gateway.rate_limit import Grant
from server.gateway.remote.address import ForbiddenAddress
from server.gateway.remote.call import RemoteCall, tokens
from server.gateway.remote.model import Remote
from server.gateway.remote.reading import DONE, documents, linger
from server.gateway.remote.refusals import Refused, explained, read_refusal
from server.gateway.remote.wire import Garbage, RemoteBatch, RemoteDelta, RemoteReader, RemoteUsage
from server.gateway.ticket import Outlook, Ticket

log = logging.getLogger(__name__)

_AHEAD = 256
"""Events that may wait for their reader; then the remote waits."""


class RemoteGeneration:
    """The events of a remote's answer. One reader; `close()` belongs in its `finally`."""

    def __init__(
        self,
        remote: Remote,
        call: RemoteCall,
        ticket: Ticket,
        grant: Grant,
        times: TimeLimits,
        clock: Clock,
    ) -> None:
        """Owns ticket and grant from here on."""
        self.model = remote.name
        self.remote = remote
        self.call = call
        self.stand_in: StandIn | None = None
        self.dropped_turns = 0
        self.closed = False
        self._ticket = ticket
        self._grant = grant
        self._times = times
        self._clock = clock
        self._opened_at = clock.monotonic()
        self._first_at: float | None = None
        self._reader = RemoteReader(call.choices, chat=call.path == "chat/completions")
        self._trial = remote.breaker.begin()
        self._task: asyncio.Task[None] | None = None
        self._pending: RemoteBatch = []
        self._failure: Exception | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._sent = False
        """Whether it has a connection."""
        self._ended = False
        self._written = 0
        """Bytes of text so far."""

    def begin(self) -> None:
        """Join the line. Raises `RateLimited`, `DeadlineUnreachable`."""
        call = self.call
        self._grant.reserve(call.prompt_tokens + call.max_tokens)
        self._ticket.price([cost(call.prompt_tokens, call.max_tokens)], self._start)

    @property
    def usage(self) -> RemoteUsage | None:
        """What the remote counted, once it has told."""
        return self._reader.usage

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, estimated until the remote tells."""
        return self.usage.prompt if self.usage else self.call.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Of these, those that the remote did not compute."""
        return self.usage.cached if self.usage else 0

    @property
    def prefix_missed(self) -> str | None:
        """Remotes do not tell."""
        return None

    @property
    def completion_tokens(self) -> int:
        """Tokens so far, estimated until the remote tells."""
        return self.usage.completion if self.usage else tokens(self._written)

    @property
    def complete(self) -> bool:
        """Whether the answer is all there."""
        return self._ended and self._failure is None

    @property
    def started(self) -> bool:
        """Whether a retry would repeat work that somebody has seen."""
        return self._first_at is not None

    @property
    def seconds_to_first_token(self) -> float | None:
        """From submission to the first token of any choice."""
        return None if self._first_at is None else self._first_at - self._opened_at

    def queue_status(self) -> Outlook | None:
        """Return the place in the line; None once it is sent."""
        return self._ticket.outlook()

    async def first_events(self, hold: float) -> bool:
        """Wait at most `hold` seconds for a token or an end; True if one came. Raises failures."""
        until = asyncio.get_running_loop().time() + hold
        while not self._pending and not self._ended:
            if not await self._wait(until):
                return False
        if not self._pending and self._failure is not None:
            raise self._failure
        return True

    async def events(self, idle: float | None = None) -> AsyncIterator[RemoteBatch]:
        """Yield what is there until the end; with `idle`, an empty batch after so many seconds."""
        while True:
            until = math.inf if idle is None else asyncio.get_running_loop().time() + idle
            while not self._pending and not self._ended and await self._wait(until):
                pass
            if self._pending or not self._ended:
                batch, self._pending = self._pending, []
                self._room.set()
                yield batch
            elif self._failure is not None:
                raise self._failure
            else:
                return

    def close(self, *, charge: bool = True) -> None:
        """End it: the connection to the remote, the place in the line. Idempotent."""
        if self.closed:
            return
        self.closed = True
        sent = self._sent
        if self._task is not None and not self._ended:
            self._task.cancel()
        self._trial.abandoned()
        if sent and not self._ended:
            self.remote.requests["aborted"] += 1
        if self.usage is not None:
            self.remote.used(self.usage)
        used = self.prompt_tokens + self.completion_tokens
        # What failed without a token was worth nothing; what its client gave up was asked for.
        spent = charge and sent and (self.started or self._failure is None)
        self._ticket.release(cost=cost(self.prompt_tokens, self.completion_tokens) if sent else 0.0)
        self._grant.release(used if spent else None)

    # The way there and back

    def _start(self, _index: int, _rank: Rank) -> None:
        self._task = self.remote.spawn(self._run())
        self._task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        """Tell whoever still reads that the server has ended it, even before it began."""
        if task.cancelled() and not self.closed:
            self._end("aborted", Draining("The server is shutting down."))

    async def _run(self) -> None:
        """Send, read, and tell the breaker how it went."""
        name = self.remote.name
        try:
            async with self.remote.free:
                self._sent = True
                self._ticket.note_started(0)
                await self._talk()
        except Refused as refused:
            # It is there, and does not want this request.
            self._trial.succeeded()
            self._end("refused", refused.error)
        except (RemoteFailed, Garbage, httpx2.HTTPError, ForbiddenAddress, TimeoutError) as error:
            told = explained(name, error)
            log.info("%s", told.message)  # another model may answer, and nobody is told of this
            self.remote.failed(self._trial.failed)
            self._end("failed", told)
        except Exception as error:
            log.exception("A request to the remote %s failed", name)
            self.remote.failed(self._trial.failed)
            self._end("failed", error)

    async def _talk(self) -> None:
        async with asyncio.timeout(self.remote.limits.read_timeout) as patience:
            async with self.remote.post(self.call.path, self.call.body) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise Garbage("a compressed answer")
                if response.status_code != 200:
                    raise await read_refusal(self.remote, response)
                await self._read(response, patience)

    async def _read(self, response: httpx2.Response, patience: asyncio.Timeout) -> None:
        """Read events; only one that says something puts the end of patience off."""
        loop = asyncio.get_running_loop()
        async with aclosing(documents(response)) as found:
            async for data in found:
                if data == DONE:
                    break
                before = self.usage
                batch = self._reader.chunk(data)
                if batch or self.usage is not before:
                    patience.reschedule(None)
                    await self._push(batch)
                    patience.reschedule(loop.time() + self.remote.limits.read_timeout)
            if not self._reader.complete:
                raise Garbage("a stream that ends before its answer does")
            patience.reschedule(None)
            self._trial.succeeded()
            self._end("ok", None)
            await linger(found)

    async def _push(self, batch: RemoteBatch) -> None:
        """Hand events over; wait while the reader is far behind."""
        if self._first_at is None and batch:
            self._first_at = self._clock.monotonic()
            self._trial.spoke()
        self._written += sum(event.size for _, event in batch if isinstance(event, RemoteDelta))
        self._pending += batch
        self._wake.set()
        while len(self._pending) > _AHEAD:
            self._room.clear()
            await self._room.wait()

    def _end(self, outcome: str, failure: Exception | None) -> None:
        """Note what became of it. Once."""
        if self._ended:
            return
        self.remote.requests[outcome] += 1
        self._failure, self._ended = failure, True
        self._ticket.note_ended(0)
        self._wake.set()

    async def _wait(self, until: float) -> bool:
        """Wait for news, at most until a time of the loop; False: it is over. Raises `TotalTimeout`."""
        ends = self._clock_ends()
        time = asyncio.get_running_loop().time
        self._wake.clear()
        try:
            async with asyncio.timeout_at(min(until, ends)):
                await self._wake.wait()
        except TimeoutError:
            if time() >= ends:
                raise self._too_late() from None
            return False
        return True

    def _clock_ends(self) -> float:
        """Time of the loop at which patience ends, for a place in the line or for all of it."""
        times = self._times
        limits = [times.total, times.given, None if self._sent else times.queue]
        left = min((one for one in limits if one is not None), default=math.inf)
        waited = self._clock.monotonic() - self._opened_at
        return asyncio.get_running_loop().time() + left - waited

    def _too_late(self) -> OnegpuError:
        if not self._sent:
            return self.remote.lane.overdue(
                f"No connection to {self.model!r} became free in time. The server is busy."
            )
        return TotalTimeout(
            f"The answer of {self.model!r} was not complete in the time that this request has; "
            "it was ended."
        )
