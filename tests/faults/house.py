"""A whole server with API keys over a faulty engine, and requests whose outcome is one word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.api.errors import STATUS
from server.core.clock import SystemClock
from server.gateway.auth import Authenticator
from server.gateway.failures import FailureLimiter
from server.gateway.gpu_guard import GuardLimits, GuardState
from server.ops.gpu_sampler import GpuSampler, NvmlReader
from server.store.connection import open_database
from server.store.key_view import KeyView
from server.store.keys import KeyRepository
from tests.faults.backend import VICTIM, FaultyEngine
from tests.nvml_machine import Machine
from tests.serving import CARD, MODEL, Stack, serve

CHAT = "/v1/chat/completions"
GUARD = GuardLimits(rule="used", hold=0.02, settle=0.02, silence=0.2)


class Answer:
    """One request, sent at once; `outcome` waits for its end."""

    def __init__(self, client: httpx.AsyncClient, body: dict[str, Any], secret: str) -> None:
        self.body = body
        headers = {"authorization": f"Bearer {secret}"}
        self._task = asyncio.create_task(client.post(CHAT, json=body, headers=headers))

    async def outcome(self) -> str:
        """`200` for a complete answer, else the code of the error that was told."""
        answer = await self._task
        if "text/event-stream" in answer.headers["content-type"]:
            events = re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)
            if events[-1] == "[DONE]":
                return "200"
            return self._code(json.loads(events[-1]))
        if answer.status_code == 200:
            return "200"
        code = self._code(answer.json())
        assert STATUS[code][0] == answer.status_code
        return code

    async def text(self) -> str:
        """What was generated."""
        answer = await self._task
        if not self.body["stream"]:
            return str(answer.json()["choices"][0]["message"]["content"])
        events = re.findall(r"^data: (\{.*)$", answer.text, re.MULTILINE)
        deltas = [event["choices"][0]["delta"] for event in map(json.loads, events)]
        return "".join(delta.get("content", "") for delta in deltas)

    @staticmethod
    def _code(told: dict[str, Any]) -> str:
        assert set(told["error"]) == {"message", "type", "param", "code"}
        assert told["error"]["message"]
        return str(told["error"]["code"])


class House:
    """What injectors and the test reach."""

    def __init__(
        self, directory: Path, machine: Machine | None, *, stream: bool, stall_after: float
    ) -> None:
        self.directory = directory
        self.machine = machine
        """What its cards are; None: it has none."""
        self.stream = stream
        self.engine = FaultyEngine()
        self.backend = self.engine.backend
        with open_database(directory) as database:
            keys = KeyRepository(database)
            self.secrets = [keys.create(name, 0).secret for name in ("neighbour", "victim")]
        self.view = KeyView(directory)
        clock = SystemClock()
        self.stack = Stack(
            engine=self.engine,  # type: ignore[arg-type]
            gatekeeper=Authenticator(self.view, clock, FailureLimiter(clock)),
            stall_after=stall_after,
            gpu=GUARD if machine else None,
        )
        self.client = httpx.AsyncClient(timeout=60)
        self.model = MODEL
        """What requests ask for."""
        self.victims_fields: dict[str, Any] = {}
        """What its request says beyond what all say."""
        self.hangs = False
        """The decode call in progress does not come back."""

    def ask(self, content: str, max_tokens: int = 8, **fields: Any) -> Answer:
        secret = self.secrets[content == VICTIM]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "stream": self.stream,
            **fields,
        }
        return Answer(self.client, body, secret)

    async def live(self) -> str:
        """`/health/live` in one word."""
        answer = await self.client.get("/health/live")
        told = answer.json()
        assert (answer.status_code == 200) is (told["status"] == "ok")
        return str(told["status"])

    async def guard_is(self, state: GuardState) -> None:
        """Wait until the card's guard is in `state`; only time and samples bring it there."""
        while self.stack.guard.cards[0].guard.state is not state:  # noqa: ASYNC110 - it notifies nobody
            await asyncio.sleep(0.01)

    def count(self, sample: str) -> float:
        """Value of a metric's sample, as it is written in queries: `name{label="value"}`."""
        name, _, rest = sample.partition("{")
        labels = set(re.findall(r'(\w+)="([^"]*)"', rest))
        text = self.stack.metrics.render()[0].decode()
        return sum(
            found.value
            for family in text_string_to_metric_families(text)
            for found in family.samples
            if found.name == name and labels <= set(found.labels.items())
        )


@contextlib.asynccontextmanager
async def house(
    directory: Path,
    machine: Machine | None = None,
    *,
    stream: bool = True,
    stall_after: float = 60.0,
) -> AsyncIterator[House]:
    """Serve until the block ends; then nobody may hold a place, and the engine ends."""
    made = House(directory, machine, stream=stream, stall_after=stall_after)
    await made.engine.begin()
    try:
        async with serve(made.stack) as stack, _watching_cards(made):
            made.client.base_url = httpx.URL(stack.url)
            yield made
            await made.client.aclose()
            async with asyncio.timeout(10):
                await stack.admission.drained()
    finally:
        made.backend.gate.free()
        await made.client.aclose()
        await made.engine.stop()
        made.view.close()


@contextlib.asynccontextmanager
async def _watching_cards(made: House) -> AsyncIterator[None]:
    if made.machine is None:
        yield
        return
    guard, sampler = made.stack.guard, GpuSampler(NvmlReader([CARD], made.stack.clock), 0.01)
    sampler.start(asyncio.get_running_loop(), guard.observe)
    watch = asyncio.create_task(guard.watch())
    try:
        await made.guard_is(GuardState.OPEN)
        yield
    finally:
        made.machine.state.hang = 0
        watch.cancel()
        sampler.stop()
        assert sampler.thread is not None
        await asyncio.to_thread(sampler.thread.join, 30)
