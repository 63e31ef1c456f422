"""Streaming chats by the benchmark's own client, asked in other ways: for a time, at a rate, obediently."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass

from bench.common import prompt
from server.bench import client
from server.bench.client import Outcome, Target

PATIENCE = 600.0


@dataclass
class Asked:
    """What every request of a run asks."""

    port: int
    model: str
    tokens: int = 32
    words: int = 12
    key: str = ""

    def bytes(self, number: int) -> bytes:
        """Return the body of request `number`."""
        return json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt(number, self.words)}],
                "max_tokens": self.tokens,
                "ignore_eos": True,
                "stream": True,
                "temperature": 0,
            }
        ).encode()


async def ask(asked: Asked, number: int) -> Outcome:
    """Send one request and read its answer to the end."""
    target = Target("127.0.0.1", asked.port, key=asked.key)
    return await client.ask(target, asked.bytes(number), PATIENCE)


def well_formed(outcome: Outcome) -> bool:
    """Tell whether a refusal has this server's shape, and advice where it must; a reset has nothing."""
    if outcome.good or outcome.status == 0:
        return True
    error = outcome.error
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        return False
    return outcome.status not in (429, 503) or 1 <= outcome.retry_after <= 120


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


def codes(outcomes: list[Outcome]) -> str:
    """Count what was told instead of an answer."""
    counted = Counter(f"{one.status} {one.code}" for one in outcomes if not one.good)
    return ", ".join(f"{count}× {code}" for code, count in counted.most_common()) or "none"
