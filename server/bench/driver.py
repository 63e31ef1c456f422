"""One row against one server: a closed loop of users, and streams beside them."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from server.bench.client import Outcome, Target, ask
from server.bench.dialogues import Question, Task
from server.bench.scenarios import Row

EXTRAS = ("top_k", "ignore_eos", "seed", "stream_options")
"""Fields beyond the basic ones, which not every server takes."""
_SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "ignore_eos": True}
_COARSE = 0.02
"""Seconds by which a timer may end early on another clock: nothing is asked with less left."""
_LONGEST_PAUSE = 5.0
_SHORTEST_PAUSE = 0.1


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    request: float = 600.0
    """For one answer; then it counts as an error."""
    row: float = 1200.0
    """For a row: what is unfinished then counts as errors, what was not asked is told."""


@dataclass(frozen=True)
class Peer:
    """A server, and how it is spoken to."""

    label: str
    target: Target
    model: str
    left_out: tuple[str, ...] = ()
    """Of `EXTRAS`, what it refuses."""

    def body(self, question: Question, seed: int) -> bytes:
        """Return the JSON of a request."""
        asked = {
            "model": self.model,
            "messages": list(question.messages),
            "max_tokens": question.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": seed,
            **_SAMPLING,
        }
        if question.tools:
            asked["tools"] = list(question.tools)
        return json.dumps({k: v for k, v in asked.items() if k not in self.left_out}).encode()


@dataclass
class Driver:
    """Plays one row. `outcomes` grow as they come in."""

    peer: Peer
    row: Row
    limits: Limits
    told: Callable[[], None] = lambda: None
    """Called after every answer."""
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    unasked: int = 0
    _seeds: Iterator[int] = field(default_factory=itertools.count)
    _end: float = 0.0
    _over: bool = False

    async def play(self) -> None:
        """Ask everything and wait for every answer."""
        begin = time.perf_counter()
        self._end = begin + self.limits.row
        waiting = deque((task, next(task)) for task in self.row.tasks)
        streams = []
        if self.row.beside:
            under_way = [asyncio.Event() for _ in self.row.beside]
            pairs = zip(self.row.beside, under_way, strict=True)
            streams = [asyncio.create_task(self._stream(task, event)) for task, event in pairs]
            await asyncio.gather(*(event.wait() for event in under_way))
        try:
            async with asyncio.TaskGroup() as users:
                for _ in range(self.row.users):
                    users.create_task(self._user(waiting))
            self._over = True
            await asyncio.gather(*streams)
        finally:
            for stream in streams:
                stream.cancel()
        self.unasked = len(waiting)
        self.seconds = time.perf_counter() - begin

    async def _user(self, waiting: deque[tuple[Task, Question]]) -> None:
        """Take questions until there are none, or the row's time is over."""
        while waiting and self._left() > _COARSE:
            task, question = waiting.popleft()
            outcome = await self._ask(question)
            try:
                following = (task, task.send(outcome))
            except StopIteration:
                continue
            if self.row.sticky:
                waiting.appendleft(following)
            else:
                waiting.append(following)

    async def _stream(self, task: Task, under_way: asyncio.Event) -> None:
        """Ask on and on, until all users are done."""
        try:
            question = next(task)
            while not self._over and self._left() > _COARSE:
                outcome = await self._ask(question, under_way.set)
                under_way.set()
                question = task.send(outcome)
        finally:
            under_way.set()

    async def _ask(self, question: Question, begun: Callable[[], None] | None = None) -> Outcome:
        body = self.peer.body(question, seed=next(self._seeds))
        patience = max(0.001, min(self.limits.request, self._left()))
        outcome = await ask(self.peer.target, body, patience, begun)
        outcome.kind = question.kind
        self.outcomes.append(outcome)
        self.told()
        if not outcome.good:  # who is turned away comes back when told to, and not at once
            pause = max(_SHORTEST_PAUSE, min(outcome.retry_after, _LONGEST_PAUSE))
            await asyncio.sleep(min(pause, max(0.0, self._left())))
        return outcome

    def _left(self) -> float:
        return self._end - time.perf_counter()
