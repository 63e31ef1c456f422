"""How streams wait, fail, and end when their reader goes: over a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace

import openai
import pytest

from server.api.sse import EventStream
from server.core.errors import ClientStalled, EngineDead, GenerationFailed
from server.gateway.spec import GenerationSpec, TextPrompt
from tests.api.asking import under_way
from tests.fakes import FakeEngine
from tests.raw_http import answer, connected, counted, post
from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**BODY, "stream": True}


def manual(**api) -> Stack:
    stack = Stack(engine=FakeEngine(manual=True))
    return stack.with_api(**api) if api else stack


def asking(stack, body=STREAM):
    return under_way(stack, body)


async def blocks(answer):
    text = "".join([part async for part in answer.aiter_text()])
    return [block for block in text.split("\n\n") if block]


async def test_the_status_waits_for_the_first_token():
    async with serve(manual()) as stack, asking(stack) as task:
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        stack.engine.fail(stream, GenerationFailed("no"))
        answer = await task
        assert answer.status_code == 500
        assert json.loads(await answer.aread())["error"]["code"] == "generation_failed"
    assert stack.admission.outstanding == 0


async def test_past_the_hold_the_stream_opens_with_the_place_in_the_line():
    async with serve(manual(stream_hold=0.01)) as stack:
        other = await stack.service.open(GenerationSpec("other", MODEL, (TextPrompt("x"),)))
        async with asking(stack) as task:
            stream = await stack.engine.submitted(2)
            answer = await task
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            assert await anext(lines) == ": queued 2/2"
            stack.engine.begin(stream)
            stack.engine.say(stream, "hi")
            stack.engine.finish(stream)
            data = [line async for line in lines if line.startswith("data: ")]
        assert data[-1] == "data: [DONE]"
        other.close()


async def test_comments_go_on_while_nothing_comes():
    async with serve(manual(stream_hold=0.0, comment_every=0.02)) as stack, asking(stack) as task:
        stream = await stack.engine.submitted()
        lines = (await task).aiter_lines()
        waiting = [line for line in [await anext(lines) for _ in range(4)] if line]
        assert waiting == [": queued 1/1"] * 2
        stack.engine.begin(stream)
        async for line in lines:
            if line == ": processing":
                break
        stack.engine.finish(stream)
        assert [line async for line in lines][-2] == "data: [DONE]"


async def test_the_line_tells_the_expected_wait_once_it_is_known():
    async with serve(manual(stream_hold=0.0)) as stack:
        stack.service.router.default.host.lane._rate.observe(8.0, 1)
        async with asking(stack) as task:
            stream = await stack.engine.submitted()
            line = await anext((await task).aiter_lines())
            stack.engine.finish(stream)
        assert line == ": queued 1/1, about 8 s"


async def test_a_later_failure_is_an_event_without_done():
    async with serve(manual()) as stack, asking(stack) as task:
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        stack.engine.say(stream, "so far")
        answer = await task
        stack.engine.fail(stream, EngineDead("the loop raised"))
        events = await blocks(answer)
    assert answer.status_code == 200
    told = json.loads(events[-1].removeprefix("data: "))
    assert told["error"]["code"] == "engine_dead"
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert "so far" in events[-2]
    assert not any("[DONE]" in event for event in events)


async def test_the_official_client_raises_on_a_later_failure():
    async with (
        serve(manual()) as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client,
    ):
        task = asyncio.create_task(client.chat.completions.create(**STREAM))
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        stack.engine.say(stream, "so far")
        chunks = await task
        stack.engine.fail(stream, GenerationFailed("the sampler broke"))
        with pytest.raises(openai.APIError, match="the sampler broke"):
            async for _ in chunks:
                pass


@pytest.mark.parametrize("phase", ["queued", "held", "running"])
@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_a_client_that_goes_frees_everything(phase, body):
    stack = manual(stream_hold=0.0 if phase == "queued" else 30.0)
    async with serve(stack):
        async with asking(stack, body) as task:
            stream = await stack.engine.submitted()
            if phase != "queued":
                stack.engine.begin(stream)
            if phase == "running":
                stack.engine.say(stream, "x")
            if task.done() or (body is STREAM and phase != "held"):
                await task
        await stack.engine.until(lambda engine: bool(engine.aborted))
        async with asyncio.timeout(5):
            await stack.admission.drained()
    assert stack.engine.aborted == [stream.request_id]
    assert stack.admission.outstanding == 0


async def test_a_reader_that_stalls_is_cut_off_and_costs_only_itself():
    async with serve(manual(write_timeout=0.2)) as stack:
        host, port = stack.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        content = json.dumps(STREAM).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        while not stack.engine.aborted:
            stack.engine.say(stream, "x" * 50_000)
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await stack.admission.drained()
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    pass
        writer.close()
    # Only now has the request surely been counted.
    text = stack.metrics.render()[0].decode()
    assert 'onegpu_errors_total{code="client_stalled"} 1.0' in text


async def test_one_send_that_waits_for_too_long_ends_the_stream_by_name():
    async def chunks():
        yield b"one"
        yield b"two"

    closed, sent = [], []
    never = asyncio.Event()

    async def send(message):
        sent.append(message)
        if message.get("body") == b"two":
            await never.wait()

    async def receive():
        await never.wait()

    stream = EventStream(chunks(), lambda: closed.append(len(sent)), send_timeout=0.05)
    with pytest.raises(ClientStalled):
        await stream({"type": "http", "method": "POST"}, receive, send)
    assert [message.get("body") for message in sent] == [None, b"one", b"two"]
    assert closed == [3]


async def test_a_stream_whose_reader_keeps_up_may_take_longer_than_one_send_may():
    async def chunks():
        for _ in range(8):
            await asyncio.sleep(0.01)
            yield b"x"

    sent = []

    async def send(message):
        await asyncio.sleep(0.01)
        sent.append(message)

    async def receive():
        await asyncio.Event().wait()

    stream = EventStream(chunks(), lambda: None, send_timeout=0.04)
    await stream({"type": "http", "method": "POST"}, receive, send)
    assert len(sent) == 10


async def test_a_body_that_stops_coming_is_408():
    async with serve(manual(write_timeout=0.1)) as stack:
        host, port = stack.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{{".encode()
        )
        async with asyncio.timeout(5):
            status = await reader.readline()
            rest = await reader.readuntil(b"}}")
        writer.close()
    assert b"408" in status
    assert b"client_stalled" in rest


async def test_a_body_that_trickles_is_408_too():
    """A byte now and then would keep the connection for ever."""
    stack = manual(write_timeout=0.2)
    async with serve(stack), connected(stack) as (reader, writer):
        told = asyncio.create_task(answer(reader))
        writer.write(post(b"x" * 10_000)[:-10_000])
        while not told.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
        status, _, error = await told
        assert (status, error["code"]) == (408, "client_stalled")
    assert counted(stack, "client_stalled") == 1


async def test_a_large_body_may_take_its_time():
    """What comes steadily has a second more for every kilobyte."""
    stack = manual(write_timeout=0.1)
    body = json.dumps({"content": "x" * 40_000}).encode()
    async with serve(stack), connected(stack) as (reader, writer):
        head = post(body, path=b"/tokenize")[: -len(body)]
        writer.write(head)
        for start in range(0, len(body), 8000):
            writer.write(body[start : start + 8000])
            await asyncio.sleep(0.05)
        assert (await answer(reader))[0] == 200


async def test_a_body_announced_as_too_large_is_refused_before_it_is_sent():
    async with serve(manual(max_body=1000)) as stack:
        host, port = stack.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(5):
            status = await reader.readline()
            rest = await reader.readuntil(b"}}")
        writer.close()
    assert b"413" in status
    assert b"request_too_large" in rest


async def test_a_silent_engine_is_504_and_work_is_not_to_be_repeated():
    stack = replace(manual(), read_timeout=0.1)
    async with serve(stack), asking(stack, BODY) as task:
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        answer = await task
        assert answer.status_code == 504
        assert answer.headers["x-should-retry"] == "false"
        assert json.loads(await answer.aread())["error"]["code"] == "engine_timeout"
    assert stack.engine.aborted == [stream.request_id]


async def test_computing_a_long_prompt_is_not_silence():
    stack = replace(manual(), read_timeout=0.05)
    async with serve(stack), asking(stack, BODY) as task:
        stream = await stack.engine.submitted()
        stack.engine.prefilling = True
        stack.engine.begin(stream)
        await stack.engine.until(lambda engine: engine.computed > 20)
        assert not task.done()
        stack.engine.say(stream, "done")
        stack.engine.finish(stream)
        assert (await task).status_code == 200


async def test_a_server_told_to_exit_lets_streams_end():
    async with serve(manual()) as stack, asking(stack) as task:
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        stack.engine.say(stream, "one")
        answer = await task
        lines = answer.aiter_lines()
        await anext(lines)
        stack.server.should_exit = True
        stack.engine.say(stream, "two")
        async for line in lines:
            if "two" in line:
                break
        stack.engine.finish(stream)
        assert [line async for line in lines if line][-1] == "data: [DONE]"


async def test_one_wakeup_with_many_tokens_is_one_chunk():
    async with serve(manual()) as stack, asking(stack) as task:
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        for text in ("a", "b", "c"):
            stack.engine.say(stream, text)
        stack.engine.finish(stream)
        events = await blocks(await task)
    assert len(events) == 4
    assert json.loads(events[1][6:])["choices"][0]["delta"] == {"content": "abc"}
