"""Streaming chats over raw sockets: every outcome is counted, a reset above all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from bench.common import prompt

PATIENCE = 600.0


@dataclass
class Outcome:
    """One request."""

    status: int = 0
    """0: the connection broke."""
    code: str = ""
    """Of an error, in the answer or in its stream."""
    first: float = 0.0
    """Seconds to the first token."""
    total: float = 0.0
    tokens: int = 0
    retry_after: float = 0.0
    well_formed: bool = True

    @property
    def good(self) -> bool:
        """Whether the answer was complete."""
        return self.status == 200 and not self.code


@dataclass
class Asked:
    """What every request of a run asks."""

    port: int
    model: str
    tokens: int = 32
    words: int = 12
    key: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def bytes(self, number: int) -> bytes:
        """Return request `number`."""
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt(number, self.words)}],
                "max_tokens": self.tokens,
                "ignore_eos": True,
                "stream": True,
                "temperature": 0,
            }
        ).encode()
        headers = {"host": "localhost", "connection": "close", **self.headers}
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body


async def ask(asked: Asked, number: int) -> Outcome:
    """Send one request and read its answer to the end."""
    outcome, begin = Outcome(), time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", asked.port)
            try:
                writer.write(asked.bytes(number))
                await _read(reader, outcome, begin)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, EOFError, TimeoutError) as error:
        outcome.status, outcome.code = 0, type(error).__name__
    outcome.total = time.perf_counter() - begin
    return outcome


async def _read(reader: asyncio.StreamReader, outcome: Outcome, begin: float) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    outcome.status = int(head.split(" ", 2)[1])
    for line in head.split("\r\n"):
        name, _, value = line.partition(": ")
        if name.lower() == "retry-after":
            outcome.retry_after = float(value)
    if outcome.status != 200:
        _judge(await reader.read(), outcome)
        return
    done = False
    while line_ := await reader.readline():
        if line_.startswith(b'data: {"error"'):
            _judge(line_[6:], outcome)
        elif line_.startswith(b"data: [DONE]"):
            done = True
        elif count := line_.count(b'"content":"') - line_.count(b'"content":""'):
            outcome.first = outcome.first or time.perf_counter() - begin
            outcome.tokens += count
    if not done and not outcome.code:
        raise ConnectionResetError


def _judge(body: bytes, outcome: Outcome) -> None:
    try:
        error = json.loads(body)["error"]
        outcome.code = error["code"]
        whole = set(error) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        outcome.code, whole = "malformed", False
    advised = outcome.status not in (429, 503) or 1 <= outcome.retry_after <= 120
    outcome.well_formed = whole and advised


async def closed_loop(asked: Asked, users: int, seconds: float) -> list[Outcome]:
    """Let `users` ask one after the other, until the time is over."""
    end, outcomes = time.perf_counter() + seconds, []

    async def user(number: int) -> None:
        while time.perf_counter() < end:
            outcome = await ask(asked, number)
            number += users
            outcomes.append(outcome)
            if not outcome.good:
                await asyncio.sleep(min(outcome.retry_after, 1.0) or 0.1)

    await asyncio.gather(*(user(number) for number in range(users)))
    return outcomes


async def open_loop(asked: Asked, rate: float, seconds: float) -> list[Outcome]:
    """Send requests at a rate, whatever becomes of them."""
    begin, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        wait = begin + number / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(ask(asked, number)))
    return list(await asyncio.gather(*tasks))


async def obedient(asked: Asked, users: int, tries: int = 20) -> list[Outcome]:
    """Let `users` ask at once, each coming back when it was told to."""

    async def user(number: int) -> Outcome:
        outcome = await ask(asked, number)
        for _ in range(tries):
            if outcome.good or not outcome.retry_after:
                break
            await asyncio.sleep(outcome.retry_after + random.random())
            outcome = await ask(asked, number)
        return outcome

    return list(await asyncio.gather(*(user(number) for number in range(users))))


def percentile(values: list[float], part: float) -> float:
    """Return the value below which so large a part lies."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * part))] if ranked else float("nan")


def codes(outcomes: list[Outcome]) -> str:
    """Count what was told instead of an answer."""
    counted = Counter(f"{one.status} {one.code}" for one in outcomes if not one.good)
    return ", ".join(f"{count}× {code}" for code, count in counted.most_common()) or "none"
