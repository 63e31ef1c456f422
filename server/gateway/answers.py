"""Answers under idempotency keys: made once, kept for a while, read by whoever comes with the key.

A task of its own writes an answer, so that it outlives the connection that asked for it; every
connection, the first one too, reads what is there and then what comes.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from server.core.clock import Clock
from server.core.errors import IdempotencyMismatch

log = logging.getLogger(__name__)

Head = TypeVar("Head")
Id = tuple[str, str]
"""Whose key it is, and the key."""

_AT_ONCE = 65536
"""Bytes handed to a reader together: one that is far behind shall be seen to read on."""


class Passing(bytes):
    """A part that is true only now, such as a place in the line. Replays leave it out."""


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Times are in seconds, sizes in bytes."""

    grace: float = 30.0
    """How long an answer is worked on that nobody reads."""
    lifetime: float = 600.0
    """How long a complete one is kept."""
    most: int = 1000
    """Complete ones; further ones drive out the oldest."""
    size: int = 64 * 2**20
    """Of all complete ones together, likewise. Those in the making are bounded by their tokens."""


class Answer(Generic[Head]):
    """One answer, as far as it is written. Belongs to the event loop."""

    def __init__(self, name: Id, fingerprint: bytes) -> None:
        """`fingerprint`: of the request that it answers."""
        self.name = name
        self.fingerprint = fingerprint
        self.head: Head | None = None
        """What comes before the first byte; None while it is open which one."""
        self.data: bytearray | bytes = bytearray()
        """Bytes once it has ended, so that all who read it whole have the same ones."""
        self.passing: tuple[int, bytes] = (0, b"")
        """Number and text of the last passing part."""
        self.error: str | None = None
        """Code of the error that it tells."""
        self.worth_keeping = False
        """Set by its writer: work was done for it, which a retry must not repeat."""
        self.ended = False
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        """Ends it, unless a reader comes before."""
        self._changed = asyncio.Event()

    def open(self, head: Head) -> None:
        """Decide on the head. Once, before anything is written."""
        self.head = head
        self._tell()

    def write(self, part: bytes) -> None:
        """Go on with it."""
        if isinstance(part, Passing):
            self.passing = (self.passing[0] + 1, part)
        else:
            self.data += part
        self._tell()

    def end(self) -> None:
        """Nothing comes any more."""
        self.ended, self.data = True, bytes(self.data)
        self._tell()

    async def change(self) -> None:
        """Wait until there is news."""
        await self._changed.wait()

    def _tell(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()


Work = Callable[[Answer[Head]], Coroutine[Any, Any, None]]
"""Writes an answer: `open` first, then `write`. Must not raise."""


class Reader(Generic[Head]):
    """One connection's way through an answer. `close` belongs in a `finally`."""

    def __init__(
        self, answer: Answer[Head], leave: Callable[[Answer[Head]], None], *, replayed: bool
    ) -> None:
        """Made by `AnswerKeeper.join` only. `replayed`: somebody asked for the answer before."""
        self.replayed = replayed
        self._answer = answer
        self._leave = leave
        self._read = 0
        self._seen = answer.passing[0]
        self._closed = False

    @property
    def error(self) -> str | None:
        """Code of the error that the answer tells, known at its end."""
        return self._answer.error

    async def head(self) -> Head:
        """Wait until the answer opens. Raises `RuntimeError` where its writer broke before."""
        while (head := self._answer.head) is None:
            if self._answer.ended:
                message = "an answer ended before it was opened"
                raise RuntimeError(message)
            await self._answer.change()
        return head

    async def read(self) -> bytes:
        """Wait for what comes next; empty at the end."""
        answer = self._answer
        while True:
            if self._read < len(answer.data):
                part = bytes(answer.data[self._read : self._read + _AT_ONCE])
                self._read += len(part)
                self._seen = answer.passing[0]
                return part
            if self._seen < answer.passing[0]:
                self._seen, passing = answer.passing
                return passing
            if answer.ended:
                return b""
            await answer.change()

    async def whole(self) -> bytes:
        """Wait for the end and return everything."""
        while not self._answer.ended:
            await self._answer.change()
        return bytes(self._answer.data)

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if not self._closed:
            self._closed = True
            self._leave(self._answer)


class AnswerKeeper(Generic[Head]):
    """Finds answers by key. Belongs to the event loop."""

    def __init__(self, limits: AnswerLimits, clock: Clock) -> None:
        """Start with none."""
        self.limits = limits
        self.counters: Counter[str] = Counter()
        """`first`, `attached`, `replayed` and `mismatch` requests; `abandoned`, `dropped` answers."""
        self.size = 0
        """Bytes of complete answers."""
        self._clock = clock
        self._answers: dict[Id, Answer[Head]] = {}
        self._complete: OrderedDict[Id, float] = OrderedDict()
        """When the lifetimes of complete ones end, the soonest first."""
        self._draining = False

    def relimit(self, limits: AnswerLimits) -> None:
        """Have other bounds from now on, for answers that are there, too."""
        self.limits = limits
        latest = self._clock.monotonic() + limits.lifetime
        self._complete = OrderedDict(
            (name, min(end, latest)) for name, end in self._complete.items()
        )
        self._drop_beyond()

    def __len__(self) -> int:
        """Count the answers, complete or not."""
        self._expire()
        return len(self._answers)

    def has(self, scope: str, key: str) -> bool:
        """Whether there is an answer under `key`, complete or not."""
        self._expire()
        return (scope, key) in self._answers

    def join(self, scope: str, key: str, fingerprint: bytes, work: Work[Head]) -> Reader[Head]:
        """Return a reader of the answer under `key`; where there is none, begin it by `work`.

        Raises `IdempotencyMismatch` where `key` was used, within `scope`, for another request.
        """
        self._expire()
        answer = self._answers.get((scope, key))
        replayed = answer is not None
        if answer is None:
            self.counters["first"] += 1
            answer = self._begin((scope, key), fingerprint, work)
        elif answer.fingerprint != fingerprint:
            self.counters["mismatch"] += 1
            raise IdempotencyMismatch(
                "This idempotency key was used for another request. Send the very same one again "
                "(body and x-fallback), or choose a new key.",
                param="idempotency-key",
            )
        else:
            self.counters["replayed" if answer.ended else "attached"] += 1
        answer.readers += 1
        _stop_timer(answer)
        return Reader(answer, self._left, replayed=replayed)

    def drain(self) -> None:
        """The server ends: what nobody reads is not worth waiting for, now and from now on."""
        self._draining = True
        for answer in [one for one in self._answers.values() if not one.readers]:
            self._abandon(answer)

    def _begin(self, name: Id, fingerprint: bytes, work: Work[Head]) -> Answer[Head]:
        answer = self._answers[name] = Answer[Head](name, fingerprint)
        answer.task = asyncio.create_task(work(answer))
        answer.task.add_done_callback(functools.partial(self._ended, answer))
        return answer

    def _left(self, answer: Answer[Head]) -> None:
        answer.readers -= 1
        if answer.readers or answer.ended:
            return
        if self._draining:
            self._abandon(answer)
        else:
            loop = asyncio.get_running_loop()
            answer.timer = loop.call_later(self.limits.grace, self._abandon, answer)

    def _abandon(self, answer: Answer[Head]) -> None:
        """End the work; whoever comes now with its key begins anew."""
        _stop_timer(answer)
        if answer.ended or answer.task is None:
            return
        self.counters["abandoned"] += 1
        del self._answers[answer.name]
        answer.task.cancel()

    def _ended(self, answer: Answer[Head], task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("An answer could not be written", exc_info=error)
        _stop_timer(answer)
        answer.end()
        name = answer.name
        if self._answers.get(name) is not answer:
            return
        if not answer.worth_keeping:
            del self._answers[name]
            return
        if len(answer.data) > self.limits.size:
            # It alone: all others would have to go for it, and then it as well.
            del self._answers[name]
            self.counters["dropped"] += 1
            return
        self._complete[name] = self._clock.monotonic() + self.limits.lifetime
        self.size += len(answer.data)
        self._drop_beyond()

    def _drop_beyond(self) -> None:
        while len(self._complete) > self.limits.most or self.size > self.limits.size:
            self._forget(next(iter(self._complete)))
            self.counters["dropped"] += 1

    def _expire(self) -> None:
        now = self._clock.monotonic()
        while self._complete and next(iter(self._complete.values())) <= now:
            self._forget(next(iter(self._complete)))

    def _forget(self, name: Id) -> None:
        del self._complete[name]
        self.size -= len(self._answers.pop(name).data)


def _stop_timer(answer: Answer[Any]) -> None:
    if answer.timer is not None:
        answer.timer.cancel()
        answer.timer = None
