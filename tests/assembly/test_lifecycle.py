"""What a person is told once the server is ready, and what its end waits for."""

from __future__ import annotations

import asyncio
import socket

import pytest

from server.api.app import Entry
from server.api.keyed import Head
from server.assembly.lifecycle import Lifecycle, _announcement
from server.assembly.parts import Parts
from server.engine.interface import EngineState
from server.gateway.agent import Agent
from server.gateway.answers import Answer, AnswerLimits
from server.gateway.prompter import Prompter
from server.gateway.routing import ModelRouter, Served
from server.gateway.spec import GenerationSpec, TextPrompt
from server.settings import load
from tests.fakes import FakeEngine
from tests.serving import MODEL, Stack, adopted, without_keys

pytestmark = pytest.mark.anyio


def parts_of(stack: Stack, *preloaded: str) -> Parts:
    """The first model, agent `x` on it, and models `y` and `z`."""
    (first, *_) = stack.service.router.served
    served = [
        Served(Agent((MODEL,), n_ctx=64), first.host, first.prompter),
        Served(Agent(("x",), n_ctx=64), first.host, first.prompter),
    ]
    for name in ("y", "z"):
        host = adopted(FakeEngine(), stack.admission, name)
        served.append(Served(Agent((name,), n_ctx=64), host, Prompter()))
    preload = [first.host, *(one.host for one in served if one.agent.name in preloaded)]
    router = ModelRouter(served)
    admission, service, hosts = stack.admission, stack.service, stack.hosts
    keys = without_keys(stack.parts.clock)
    return Parts(
        hosts,
        router,
        tuple(preload),
        admission,
        stack.answers,
        service,
        stack.guard,
        stack.remotes,
        keys,
        stack.reporter,
        stack.health,
        Entry(stack.app),
        lambda _: stack.app,
        (),
    )


async def told(stack: Stack, *preloaded: str) -> str:
    """Announce what is served."""
    stack.service.shutdown()
    return _announcement("http://here", parts_of(stack, *preloaded))


async def test_it_names_what_is_there_what_comes_and_what_waits_to_be_asked() -> None:
    text = await told(Stack(), "y")
    assert "fake 1M Q4_K_M" in text
    assert "The same weights: x. Loading now: y. Loaded when asked for: z." in text


async def test_a_model_that_is_gone_again_is_announced_all_the_same() -> None:
    stack = Stack()
    stack.engine.state = EngineState.DEAD  # as one that a keep_alive of 0 has ended
    text = await told(stack)
    assert f"{MODEL} is ready on http://here" in text


async def test_the_end_waits_for_no_answer_that_nobody_reads() -> None:
    stack = Stack(engine=FakeEngine(manual=True), kept=AnswerLimits(grace=3600.0))
    spec = GenerationSpec("id", MODEL, (TextPrompt("hello"),))

    async def work(answer: Answer[Head]) -> None:
        generation = await stack.service.open(spec)
        try:
            async for _ in generation.events():
                pass
        finally:
            generation.close()

    reader = stack.answers.join("", "key", b"", work)
    stream = await stack.engine.submitted()
    reader.close()
    settings = load(environ={"ONEGPU_SERVER__SHUTDOWN_GRACE": "1h"}).settings
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(10):
            await Lifecycle(settings, parts_of(stack), listener)._drain()
    assert stack.engine.aborted == [stream.request_id]
    stack.service.shutdown()
