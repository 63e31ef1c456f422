"""Several models behind one API: their cards, loading and unloading, streams that wait for a load."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from server.core.errors import ModelFileError
from server.gateway.agent import Agent
from server.gateway.aliases import Alias
from server.gateway.host import Host, HostSpec
from server.gateway.hosts import HostManager
from server.gateway.memory import Budget, Footprint
from server.gateway.prompter import Prompter
from server.gateway.routing import ModelRouter, Routes, Served
from tests.api.asking import get, post
from tests.fakes import FakeEngine
from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
BODY = {"model": "other", "messages": [{"role": "user", "content": "hello"}]}


class TwoModels(Stack):
    """The usual model, and `other`, which is loaded on demand; there is room for one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loads: list[FakeEngine] = []
        self.begun = asyncio.Event()
        first = self.hosts.hosts[0]
        spec = HostSpec("other", 2, 512, 1024, Footprint(cpu=1), self._make, keep_alive=60.0)
        clock = self.parts.clock
        other = Host(spec, self.admission.open_lane(2), clock.monotonic())
        prompter = Prompter()
        prompter.bind(self.engine.info, self.engine.tokenizer)
        agent = Agent(("other",), n_ctx=512, overflow="drop_oldest", description="for tests")
        served = [*self.service.router.served, Served(agent, other, prompter)]
        self.service.router = ModelRouter(served)
        manager = HostManager([first, other], Budget(cpu=1), clock)
        self.hosts = self.service.hosts = manager

    def _make(self) -> FakeEngine:
        engine = FakeEngine(gated=True)
        self.loads.append(engine)
        # After the manager has started it.
        asyncio.get_running_loop().call_soon(self.begun.set)
        return engine

    async def loading(self) -> FakeEngine:
        """Wait for the load; return its engine."""
        async with asyncio.timeout(10):
            await self.begun.wait()
        return self.loads[0]


async def test_a_card_tells_all_there_is_to_know():
    stack = TwoModels()
    card = (await get(stack, "/v1/models/other")).json()
    assert card["state"] == "unloaded"
    assert (card["context_window"], card["slots"], card["load_progress"]) == (512, 2, 0.0)
    assert card["max_tokens"] == 512, "the default is 2048, but no answer outgrows the context"
    assert (card["memory"], card["owned_by"]) == ({"gpu": 0, "cpu": 1}, "onegpu")
    assert (card["expires_at"], card["error"]) == (None, None)
    assert card["description"] == "for tests"
    listed = (await get(stack, "/v1/models")).json()["data"]
    assert [(one["id"], one["state"]) for one in listed] == [
        (MODEL, "ready"),
        ("alias", "ready"),
        ("other", "unloaded"),
    ]
    stack.service.shutdown()


async def test_aliases_are_listed_with_what_they_stand_for():
    stack = TwoModels()
    stack.service.router.routes = Routes({"gpt": Alias("gpt", ((MODEL, 90.0), ("other", 10.0)))})
    listed = (await get(stack, "/v1/models")).json()["data"]
    assert [one["id"] for one in listed] == [MODEL, "alias", "other", "gpt"]
    card = (await get(stack, "/v1/models/gpt")).json()
    assert card == listed[-1]
    assert card["alias_of"] == {MODEL: 90.0, "other": 10.0}
    assert card["context_window"] == 512, "the least that a request may meet"
    answer = await post(stack, CHAT, {**BODY, "model": "gpt", "messages": BODY["messages"]})
    assert answer.json()["model"] == MODEL
    stack.service.shutdown()


async def test_loading_takes_the_place_of_what_is_idle_and_back():
    stack = TwoModels()
    told = (await post(stack, "/models/load", {"model": "other"})).json()
    assert (told["success"], told["state"]) == (True, "unloaded"), "the first one has to go before"
    (await stack.loading()).come_up()
    await stack.hosts.load(stack.hosts.hosts[1])
    card = (await get(stack, "/v1/models/other")).json()
    assert card["state"] == "ready"
    assert card["expires_at"] is not None
    assert card["meta"]["n_vocab"] == 265
    assert (await get(stack, f"/v1/models/{MODEL}")).json()["state"] == "unloaded"
    assert (await get(stack, "/slots")).json() == []
    assert len((await get(stack, "/slots?model=other")).json()) == 4
    assert (await get(stack, "/props?model=other")).json()["total_slots"] == 2
    unloaded = await get(stack, "/props")
    assert unloaded.status_code == 503
    assert "is not loaded (unloaded). Ask it something" in unloaded.json()["error"]["message"]
    await post(stack, "/models/unload", {"model": "other"})
    assert (await get(stack, "/v1/models/other")).json()["state"] in ("unloading", "unloaded")
    assert (await post(stack, "/models/load", {})).json()["error"]["param"] == "model"
    assert (await post(stack, "/models/load", {"model": "nobody"})).status_code == 404
    assert (await get(stack, "/slots?model=nobody")).status_code == 404
    stack.service.shutdown()


async def test_a_request_waits_for_its_model():
    stack = TwoModels()
    task = asyncio.create_task(post(stack, CHAT, BODY))
    (await stack.loading()).come_up()
    answer = await task
    assert answer.status_code == 200
    assert answer.json()["model"] == "other"
    tokens = await post(stack, "/tokenize", {"content": "hi", "model": "other"})
    assert tokens.json()["tokens"] == [104, 105]
    stack.service.shutdown()


async def test_a_load_that_fails_is_a_503_with_the_reason():
    stack = TwoModels()
    task = asyncio.create_task(post(stack, CHAT, BODY))
    (await stack.loading()).break_down(ModelFileError("the file is cut off"))
    answer = await task
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_failed"
    assert "retry-after" in answer.headers
    card = (await get(stack, "/v1/models/other")).json()
    assert card["state"] == "failed"
    assert "cut off" in card["error"]
    assert (await get(stack, "/health")).json()["models_failed"] == ["other"]
    stack.service.shutdown()


async def test_a_wait_that_is_too_long_says_when_to_come_back():
    stack = TwoModels(connect_timeout=0.05)
    answer = await post(stack, CHAT, BODY)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_loading"
    assert int(answer.headers["retry-after"]) >= 1
    stack.service.shutdown()


async def test_a_full_line_for_a_model_that_loads_says_so():
    stack = TwoModels(max_queue=0)
    tasks = [asyncio.create_task(post(stack, CHAT, BODY)) for _ in range(2)]
    engine = await stack.loading()
    answer = await post(stack, CHAT, BODY)
    assert answer.json()["error"]["code"] == "model_loading"
    engine.come_up()
    assert [(await task).status_code for task in tasks] == [200, 200]
    stack.service.shutdown()


async def test_a_stream_opens_and_tells_the_progress_of_the_load():
    stack = TwoModels().with_api(stream_hold=0.01, comment_every=0.02)
    async with serve(stack), httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
        request = client.build_request("POST", CHAT, json={**BODY, "stream": True})
        answer = await client.send(request, stream=True)
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith(": loading 0%, about ")
        (await stack.loading()).come_up()
        data = [line async for line in lines if line.startswith("data: ")]
        assert data[-1] == "data: [DONE]"
        assert json.loads(data[0][6:])["model"] == "other"
    assert stack.admission.outstanding == 0
    assert stack.hosts.hosts[1].holders == 0


async def test_a_load_that_fails_under_an_open_stream_is_an_error_event():
    stack = TwoModels().with_api(stream_hold=0.01)
    async with serve(stack), httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
        request = client.build_request("POST", CHAT, json={**BODY, "stream": True})
        answer = await client.send(request, stream=True)
        (await stack.loading()).break_down(ModelFileError("the file is cut off"))
        data = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert json.loads(data[-1][6:])["error"]["code"] == "model_failed"
    assert stack.admission.outstanding == 0


async def test_a_client_that_goes_while_its_model_loads_leaves_nothing():
    stack = TwoModels().with_api(stream_hold=0.01)
    async with serve(stack), httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
        request = client.build_request("POST", CHAT, json={**BODY, "stream": True})
        answer = await client.send(request, stream=True)
        assert stack.admission.outstanding == 1
        await answer.aclose()
        async with asyncio.timeout(10):
            await stack.admission.drained()
        (await stack.loading()).come_up()
    assert stack.hosts.hosts[1].holders == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "hi"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": BODY["messages"]}),
        ("/v1/completions", {"prompt": "hi"}),
        (CHAT, BODY),
    ],
)
async def test_who_goes_while_a_model_loads_does_not_wait_on(path, body):
    stack = TwoModels()
    async with serve(stack), httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
        task = asyncio.create_task(client.post(path, json={**body, "model": "other"}))
        await stack.loading()
        assert len(stack.hosts._line) == 1
        task.cancel()
        async with asyncio.timeout(10):
            while stack.hosts._line:
                stack.hosts._changed.clear()
                await stack.hosts._changed.wait()
        stack.loads[0].come_up()
    assert stack.hosts.hosts[1].holders == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_dropped_turns_are_told_in_header_and_body(stream):
    stack = TwoModels()
    talk = [
        {"role": role, "content": "x" * 150} for _ in range(3) for role in ("user", "assistant")
    ]
    messages = [*talk, {"role": "user", "content": "last"}]
    task = asyncio.create_task(
        post(stack, CHAT, {"model": "other", "messages": messages, "stream": stream})
    )
    (await stack.loading()).come_up()
    answer = await task
    assert answer.headers["x-onegpu-dropped-turns"] == "2"
    if stream:
        chunks = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        told = [json.loads(chunk).get("onegpu") for chunk in chunks]
        assert told[0] == {"dropped_turns": 2}
        assert not any(told[1:])
    else:
        assert answer.json()["onegpu"] == {"dropped_turns": 2}
    stack.service.shutdown()
