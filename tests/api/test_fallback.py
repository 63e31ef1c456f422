"""How clients are told that another model answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

import httpx
import openai
import pytest

from server.api.limits import ApiLimits
from server.core.errors import EngineDead, Unavailable
from server.gateway.generation import StandIn
from server.gateway.ticket import Hold
from tests.api.asking import post
from tests.serving import MODEL, serve
from tests.standby import Trio

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
LEGACY = {"model": MODEL, "prompt": "hi"}


@contextlib.asynccontextmanager
async def asking(stack, **body):
    """A streaming request that is under way; yields a task for its answer, and ends it."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
        request = client.build_request("POST", CHAT, json={**BODY, "stream": True, **body})
        task = asyncio.create_task(client.send(request, stream=True))
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
                await (await task).aclose()


def manual(**api) -> Trio:
    trio = Trio(api=ApiLimits(**{"comment_every": 0.02} | api))
    for engine in (trio.engine, trio.small, trio.large):
        engine.manual = True
    return trio


@pytest.mark.parametrize(("path", "body"), [(CHAT, BODY), ("/v1/completions", LEGACY)])
async def test_a_whole_answer_is_labelled(path, body):
    trio = Trio()
    well = await post(trio, path, body)
    assert well.json()["model"] == MODEL
    assert not any(name.startswith("x-fallback") for name in well.headers)
    trio.kill(MODEL)
    answer = await post(trio, path, body)
    assert answer.status_code == 200
    assert answer.json()["model"] == "small"
    assert answer.headers["x-fallback-model"] == "small"
    assert answer.headers["x-fallback-reason"] == "dead"
    text = trio.metrics.render()[0].decode()
    labels = f'{{model="{MODEL}",reason="dead",target="small"}}'
    assert f"onegpu_fallbacks_total{labels} 1.0" in text
    trio.service.shutdown()


async def test_the_access_log_tells_of_it(caplog):
    trio = Trio()
    trio.kill(MODEL)
    with caplog.at_level(logging.INFO, "onegpu.access"):
        await post(trio, CHAT, BODY)
    (line,) = [record for record in caplog.records if record.name == "onegpu.access"]
    assert vars(line)["facts"]["fallback"] == "small dead"
    trio.service.shutdown()


async def test_a_client_may_refuse_it_and_say_nothing_else():
    trio = Trio()
    trio.kill(MODEL)
    refused = await post(trio, CHAT, BODY, **{"x-fallback": "none"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
    wrong = await post(trio, CHAT, BODY, **{"x-fallback": "small"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-fallback")
    trio.service.shutdown()


async def test_a_stream_is_labelled_by_headers_and_model():
    trio = Trio()
    trio.kill(MODEL)
    async with serve(trio), asking(trio) as task:
        answer = await task
        lines = [line async for line in answer.aiter_lines() if line]
    assert answer.headers["x-fallback-model"] == "small"
    assert answer.headers["x-fallback-reason"] == "dead"
    assert not any(line.startswith(":") for line in lines), "the headers have said it"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert {chunk["model"] for chunk in chunks} == {"small"}


async def test_the_official_client_gets_the_label():
    trio = Trio()
    trio.kill(MODEL)
    async with (
        serve(trio),
        openai.AsyncOpenAI(base_url=f"{trio.url}/v1", api_key="x", max_retries=0) as client,
    ):
        raw = await client.chat.completions.with_raw_response.create(**BODY)
        answer = raw.parse()
    assert (answer.model, raw.headers["x-fallback-reason"]) == ("small", "dead")


async def test_within_the_hold_a_model_that_dies_costs_no_error():
    trio = manual(stream_hold=30.0)
    async with serve(trio), asking(trio) as task:
        stream = await trio.engine.submitted()
        trio.engine.begin(stream)
        trio.engine.fail(stream, EngineDead("the loop raised"))
        stream = await trio.small.submitted()
        trio.small.begin(stream)
        trio.small.say(stream, "here")
        answer = await task
        trio.small.finish(stream)
        text = (await answer.aread()).decode()
    assert answer.headers["x-fallback-model"] == "small"
    assert trio.admission.outstanding == 0
    assert '"model":"small"' in text
    assert text.endswith("data: [DONE]\n\n")


async def test_in_an_opened_stream_a_comment_says_who_answers():
    trio = manual(stream_hold=0.0)
    async with serve(trio), asking(trio) as task:
        stream = await trio.engine.submitted()
        answer = await task
        assert "x-fallback-model" not in answer.headers
        trio.engine.begin(stream)
        trio.engine.fail(stream, EngineDead("the loop raised"))
        stream = await trio.small.submitted()
        trio.small.begin(stream)
        trio.small.say(stream, "here")
        trio.small.finish(stream)
        lines = [line async for line in answer.aiter_lines() if line]
    comment = lines.index(": fallback small dead")
    data = [line for line in lines if line.startswith("data: ")]
    assert lines.index(data[0]) > comment
    assert data[-1] == "data: [DONE]"
    assert {json.loads(line[6:])["model"] for line in data[:-1]} == {"small"}


async def test_once_a_stream_has_text_a_failure_ends_it():
    trio = manual(stream_hold=0.0)
    async with serve(trio), asking(trio) as task:
        stream = await trio.engine.submitted()
        trio.engine.begin(stream)
        trio.engine.say(stream, "so far")
        answer = await task
        lines = answer.aiter_lines()
        async for line in lines:
            if "so far" in line:
                break
        trio.engine.fail(stream, EngineDead("the loop raised"))
        rest = [line async for line in lines if line]
    assert json.loads(rest[-1][6:])["error"]["code"] == "engine_dead"
    assert not trio.small.requests


async def test_a_stream_waits_for_a_targets_load_with_comments():
    trio = manual(stream_hold=0.0)
    trio.unloaded("small")
    trio.small.manual = False
    trio.kill(MODEL)
    async with serve(trio), asking(trio) as task:
        answer = await task
        lines = answer.aiter_lines()
        assert await anext(lines) == ": processing"
        trio.small.come_up()
        rest = [line async for line in lines if line]
    assert ": fallback small dead" in rest
    assert rest[-1] == "data: [DONE]"


async def test_a_full_line_that_leads_to_a_targets_load_opens_the_stream_in_time():
    trio = manual(stream_hold=0.0)
    trio.unloaded("small")
    trio.small.manual = False
    trio.stand_in({MODEL: ("small",)})
    trio.host(MODEL).lane.hold(Hold(_short, shut=True))
    async with serve(trio), asking(trio) as task:
        async with asyncio.timeout(5):
            answer = await task
        lines = answer.aiter_lines()
        assert await anext(lines) == ": processing"
        trio.small.come_up()
        rest = [line async for line in lines if line]
    assert ": fallback small gpu_memory" in rest


def _short() -> Unavailable:
    error = Unavailable("the card is full", retry_after=3.0)
    error.code = "gpu_memory"
    return error


async def test_where_nobody_answers_an_opened_stream_ends_with_the_models_own_error():
    trio = manual(stream_hold=0.0)
    async with serve(trio), asking(trio) as task:
        await trio.engine.submitted()
        answer = await task
        for name in (MODEL, "small", "large"):
            engine = trio.engine_of(name)
            engine.fail(await engine.submitted(), EngineDead(f"{name} died"))
        lines = [line async for line in answer.aiter_lines() if line]
    assert json.loads(lines[-1][6:])["error"]["message"] == f"{MODEL} died"


@pytest.mark.parametrize("hold", [0.0, 30.0])
async def test_a_client_that_goes_while_another_model_answers_frees_everything(hold):
    trio = manual(stream_hold=hold)
    trio.kill(MODEL)
    async with serve(trio):
        async with asking(trio) as task:
            stream = await trio.small.submitted()
            trio.small.begin(stream)
            if not hold:
                await task
        await trio.small.until(lambda engine: bool(engine.aborted))
        async with asyncio.timeout(5):
            await trio.admission.drained()
    assert trio.small.aborted == [stream.request_id]


def test_names_that_headers_cannot_carry_are_quoted():
    from server.api.fallback import fallback_comment, fallback_headers

    told = StandIn("模型\n1", "dead")
    assert fallback_headers(told)["x-fallback-model"] == "%E6%A8%A1%E5%9E%8B%0A1"
    assert fallback_comment(told).count(b"\n") == 2
    assert fallback_headers(StandIn("hf:a/b@v1", "dead"))["x-fallback-model"] == "hf:a/b@v1"
