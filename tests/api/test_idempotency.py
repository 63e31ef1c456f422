"""Retries with an `Idempotency-Key`, over a real server, by the official client too."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace

import httpx
import openai
import pytest

from server.core.errors import EngineDead, GenerationFailed, InvalidApiKey, QueueFull
from server.gateway.answers import AnswerLimits
from server.gateway.principal import Principal
from server.gateway.rate_limit import RateLimits
from tests.api.asking import under_way
from tests.fakes import FakeEngine
from tests.serving import MODEL, Stack, serve
from tests.standby import Trio

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**BODY, "stream": True}
KEY = {"idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


def manual(**fields) -> Stack:
    return Stack(engine=FakeEngine(manual=True), **fields)


def asking(stack, body=STREAM, path=CHAT, **headers):
    """A request with the key."""
    sent = {**KEY, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return under_way(stack, body, path, sent)


async def data(answer):
    return [line async for line in answer.aiter_lines() if line.startswith("data: ")]


async def running(stack, text="so far"):
    """The one generation there is, with its first token."""
    stream = await stack.engine.submitted()
    stack.engine.begin(stream)
    stack.engine.say(stream, text)
    return stream


async def readers(stack, count):
    """Wait until so many connections read the one answer."""
    (answer,) = stack.answers._answers.values()
    async with asyncio.timeout(10):
        while answer.readers != count:  # noqa: ASYNC110 - connections notify nobody
            await asyncio.sleep(0)
    return answer


async def test_the_official_client_gets_the_whole_stream_after_its_connection_broke():
    async with (
        serve(manual(rate=RateLimits(requests_per_minute=60, max_concurrent=1))) as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client,
    ):
        task = asyncio.create_task(client.chat.completions.create(**STREAM, extra_headers=KEY))
        stream = await running(stack, "one ")
        chunks = await task
        first = [await anext(chunks), await anext(chunks)]
        await chunks.close()
        await readers(stack, 0)
        stack.engine.say(stream, "two ")
        raw = await client.chat.completions.with_raw_response.create(**STREAM, extra_headers=KEY)
        assert raw.headers["idempotency-replayed"] == "true"
        assert raw.headers["x-ratelimit-remaining-requests"] == "59"
        stack.engine.say(stream, "three")
        stack.engine.finish(stream)
        replayed = [chunk async for chunk in raw.parse()]
        again = await client.chat.completions.create(**STREAM, extra_headers=KEY)
        assert [chunk async for chunk in again] == replayed
    assert replayed[:2] == first
    assert "".join(chunk.choices[0].delta.content or "" for chunk in replayed) == "one two three"
    assert len({chunk.id for chunk in replayed}) == 1
    assert replayed[-1].choices[0].finish_reason == "stop"
    assert len(stack.engine.requests) == 1
    assert stack.engine.aborted == []
    assert stack.admission.counters["admitted"] == 1
    assert stack.answers.counters == {"first": 1, "attached": 1, "replayed": 1}


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, BODY), ("/v1/completions", {"model": MODEL, "prompt": "hello"})]
)
async def test_one_answer_for_all_who_wait_and_for_those_who_come_later(path, body):
    async with (
        serve(manual()) as stack,
        asking(stack, body, path) as one,
        asking(stack, body, path) as two,
    ):
        stream = await running(stack)
        stack.engine.finish(stream)
        answers = [await one, await two]
        bodies = [json.loads(await answer.aread()) for answer in answers]
        async with asking(stack, body, path) as three:
            late = await three
            bodies.append(json.loads(await late.aread()))
    assert bodies[0] == bodies[1] == bodies[2]
    assert "so far" in json.dumps(bodies[0])
    assert sorted("idempotency-replayed" in a.headers for a in answers) == [False, True]
    assert late.headers["idempotency-replayed"] == "true"
    assert late.headers["content-type"] == "application/json"
    assert late.headers["x-request-id"] != answers[0].headers["x-request-id"]
    assert len(stack.engine.requests) == 1


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_without_a_retry_the_work_ends_after_the_grace(body):
    async with serve(manual(kept=AnswerLimits(grace=0.05))) as stack:
        async with asking(stack, body) as task:
            stream = await running(stack)
            if body is STREAM:
                await task
        await stack.engine.until(lambda engine: bool(engine.aborted))
        async with asyncio.timeout(5):
            await stack.admission.drained()
        async with asking(stack, body) as task:
            again = await stack.engine.submitted(2)
            stack.engine.begin(again)
            stack.engine.finish(again)
            assert "idempotency-replayed" not in (await task).headers
    assert stack.engine.aborted == [stream.request_id]


async def test_a_stream_without_the_key_ends_with_its_connection():
    async with serve(manual()) as stack:
        async with asking(stack, **{"idempotency-key": ""}) as task:
            assert (await task).status_code == 400
        async with httpx.AsyncClient(base_url=stack.url) as client:
            task = asyncio.create_task(
                client.send(client.build_request("POST", CHAT, json=STREAM), stream=True)
            )
            await running(stack)
            await (await task).aclose()
        await stack.engine.until(lambda engine: bool(engine.aborted))
    assert not stack.answers.counters


async def test_another_body_or_endpoint_under_the_key_is_422():
    async with serve(Stack()) as stack:
        async with asking(stack, BODY) as task:
            assert (await task).status_code == 200
        other = {**BODY, "seed": 1}
        legacy = {"model": MODEL, "prompt": "a"}
        for body, path in ((other, CHAT), (STREAM, CHAT), (legacy, "/v1/completions")):
            async with asking(stack, body, path) as task:
                answer = await task
                error = json.loads(await answer.aread())["error"]
            assert answer.status_code == 422
            assert (error["code"], error["param"]) == ("idempotency_mismatch", "idempotency-key")
        async with openai.AsyncOpenAI(
            base_url=f"{stack.url}/v1", api_key="x", max_retries=2
        ) as client:
            with pytest.raises(openai.UnprocessableEntityError):
                await client.chat.completions.create(**other, extra_headers=KEY)
    assert len(stack.engine.requests) == 1
    assert stack.answers.counters["mismatch"] == 4


async def test_who_refuses_other_models_answers_does_not_get_one_by_the_key():
    async with serve(Stack()) as stack:
        for fallback, status in (({}, 200), ({"x_fallback": "none"}, 422), ({}, 200)):
            async with asking(stack, BODY, **fallback) as task:
                assert (await task).status_code == status
    assert len(stack.engine.requests) == 1


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_a_replay_says_who_answered_instead(body):
    trio = Trio()
    trio.kill(MODEL)
    async with serve(trio) as stack:
        for reply in (None, "true"):
            async with asking(stack, body) as task:
                answer = await task
                assert answer.headers.get("idempotency-replayed") == reply
                assert answer.headers["x-fallback-model"] == "small"
                assert answer.headers["x-fallback-reason"] == "dead"
                assert '"model":"small"' in (await answer.aread()).decode()
    assert len(trio.small.requests) == 1


async def test_one_api_keys_answers_are_not_anothers():
    class Names:
        def authenticate(self, presented, _address):
            return Principal(key_id=presented, name=presented)

    async with serve(Stack(gatekeeper=Names())) as stack:
        for name, requests in (("ann", 1), ("bob", 2), ("ann", 2)):
            async with asking(stack, BODY, authorization=f"Bearer {name}") as task:
                assert (await task).status_code == 200
            assert len(stack.engine.requests) == requests


async def test_a_key_that_was_revoked_has_its_answers_no_more():
    class Door:
        shut = False

        def authenticate(self, _presented, _address):
            if self.shut:
                raise InvalidApiKey("revoked")
            return Principal(key_id="ann", name="ann")

    door = Door()
    async with serve(Stack(gatekeeper=door)) as stack:
        for shut, status in ((False, 200), (True, 401), (False, 200)):
            door.shut = shut
            async with asking(stack, BODY) as task:
                assert (await task).status_code == status
    assert stack.answers.counters == {"first": 1, "replayed": 1}
    assert len(stack.engine.requests) == 1


@pytest.mark.parametrize("text", ["", "x" * 256, "a b", "schlüssel".encode()])
async def test_what_is_no_key_is_a_400_that_says_what_one_is(text):
    stack = Stack()
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(CHAT, json=BODY, headers={"idempotency-key": text})
        twice = [("idempotency-key", "a"), ("idempotency-key", "b")]
        two = await client.post(CHAT, json=BODY, headers=twice)
        longest = await client.post(CHAT, json=BODY, headers={"idempotency-key": "x" * 255})
    for refused in (answer, two):
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "idempotency-key"
        assert "1 to 255 visible ASCII" in refused.json()["error"]["message"]
    assert longest.status_code == 200
    stack.service.shutdown()


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_a_refusal_is_not_kept_so_that_a_retry_can_succeed(monkeypatch, body):
    async with serve(manual()) as stack:
        whole = stack.engine.submit

        def full(request, watch=None):
            monkeypatch.setattr(stack.engine, "submit", whole)
            raise QueueFull("The waiting line is full.", retry_after=3)

        monkeypatch.setattr(stack.engine, "submit", full)
        async with asking(stack, body) as task:
            answer = await task
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
        assert "x-should-retry" not in answer.headers
        async with asking(stack, body) as task:
            stream = await running(stack)
            stack.engine.finish(stream)
            assert (await task).status_code == 200
    text = stack.metrics.render()[0].decode()
    assert 'onegpu_errors_total{code="queue_full"} 1.0' in text


async def test_a_refusal_in_an_opened_stream_is_not_kept_either():
    async with serve(manual().with_api(stream_hold=0.0)) as stack:
        async with asking(stack) as task:
            stream = await stack.engine.submitted()
            stack.engine.fail(stream, QueueFull("no"))
            assert "queue_full" in (await data(await task))[-1]
        async with asking(stack) as task:
            stream = await stack.engine.submitted(2)
            stack.engine.begin(stream)
            stack.engine.finish(stream)
            assert (await data(await task))[-1] == "data: [DONE]"


@pytest.mark.parametrize("error", [GenerationFailed("it broke"), EngineDead("it died")])
async def test_a_failure_of_work_that_had_started_is_kept(error):
    async with serve(manual()) as stack:
        for body, code in ((BODY, error.code), (STREAM, error.code)):
            before = len(stack.engine.streams)
            sent = {**body, "seed": before}
            seen = []
            for number in range(2):
                async with asking(stack, sent, idempotency_key=f"k{before}") as task:
                    if number == 0:
                        stream = await stack.engine.submitted(before + 1)
                        stack.engine.begin(stream)
                        if body is STREAM:
                            stack.engine.say(stream, "so far")
                            await task
                        stack.engine.fail(stream, error)
                    answer = await task
                    seen.append((answer.status_code, await answer.aread()))
                    assert answer.headers.get("x-should-retry") == (
                        None if body is STREAM else "false"
                    )
            assert seen[0] == seen[1]
            assert code in seen[0][1].decode()
    assert len(stack.engine.requests) == 2
    text = stack.metrics.render()[0].decode()
    assert f'onegpu_errors_total{{code="{error.code}"}} 4.0' in text


async def test_a_reader_that_stalls_costs_the_others_nothing():
    async with serve(manual().with_api(write_timeout=0.3)) as stack:
        host, port = stack.url.removeprefix("http://").split(":")
        content = json.dumps(STREAM).encode()
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
            f"idempotency-key: {KEY['idempotency-key']}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        stream = await running(stack)
        async with httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
            task = asyncio.create_task(client.post(CHAT, content=content, headers=KEY))
            answer = await readers(stack, 2)
            while answer.readers == 2:
                stack.engine.say(stream, "x" * 5_000)
                await asyncio.sleep(0)
            stack.engine.say(stream, "the end")
            stack.engine.finish(stream)
            other = await task
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        writer.close()
    assert other.text.endswith("data: [DONE]\n\n")
    assert "the end" in other.text
    assert stack.engine.aborted == []
    text = stack.metrics.render()[0].decode()
    assert 'onegpu_errors_total{code="client_stalled"} 1.0' in text


async def test_comments_are_for_those_who_wait_now():
    stack = manual().with_api(stream_hold=0.0, comment_every=0.02)
    async with serve(stack), asking(stack) as one:
        stream = await stack.engine.submitted()
        lines = (await one).aiter_lines()
        assert await anext(lines) == ": queued 1/1"
        async with asking(stack) as two:
            late = (await two).aiter_lines()
            assert await anext(late) == ": queued 1/1"
            stack.engine.begin(stream)
            stack.engine.finish(stream)
            assert [line async for line in late][-2] == "data: [DONE]"
        async with asking(stack) as three:
            replay = [line async for line in (await three).aiter_lines() if line]
    assert all(line.startswith("data: ") for line in replay)
    assert len(replay) == 3


async def test_while_the_server_drains_running_answers_are_read_and_nothing_begins():
    async with serve(manual()) as stack, asking(stack) as one:
        stream = await running(stack)
        await one
        stack.admission.drain()
        stack.answers.drain()
        async with asking(stack) as two, asking(stack, idempotency_key="new") as three:
            refused = await three
            assert refused.status_code == 503
            assert json.loads(await refused.aread())["error"]["code"] == "draining"
            answer = await two
            stack.engine.finish(stream)
            assert (await data(answer))[-1] == "data: [DONE]"
            assert (await data(await one))[-1] == "data: [DONE]"
        async with asyncio.timeout(5):
            await stack.admission.drained()


@pytest.mark.parametrize("running", [True, False], ids=["attached", "replayed"])
async def test_a_full_line_refuses_no_retry_and_counts_none_as_refused(running):
    async with serve(manual(max_queue=0)) as stack, asking(stack) as one:
        stream = await stack.engine.submitted()
        stack.engine.begin(stream)
        stack.engine.say(stream, "so far")
        if not running:
            stack.engine.finish(stream)
            assert (await data(await one))[-1] == "data: [DONE]"
        stack.service.router.default.host.lane.admit(stack.engine.slots - running)
        async with asking(stack) as retry, asking(stack, idempotency_key="new") as new:
            assert (await new).status_code == 503
            assert (await retry).headers["idempotency-replayed"] == "true"
        stack.engine.finish(stream)
    assert stack.admission.counters["queue_full"] == 1


async def test_all_choices_come_again():
    body = {**STREAM, "n": 3, "stream_options": {"include_usage": True}}
    async with serve(Stack()) as stack:
        seen = []
        for _ in range(2):
            async with asking(stack, body) as task:
                seen.append(await data(await task))
    assert seen[0] == seen[1]
    assert {json.loads(line[6:])["choices"][0]["index"] for line in seen[0][:-2]} == {0, 1, 2}
    assert len(stack.engine.requests) == 3


async def test_a_deadline_of_no_form_is_refused_though_the_answer_is_there():
    async with serve(Stack()) as stack:
        for deadline, status in (("1000", 200), ("soon", 400), ("1", 200)):
            async with asking(stack, BODY, x_request_deadline_ms=deadline) as task:
                assert (await task).status_code == status
    assert len(stack.engine.requests) == 1


async def test_metrics_tell_of_keys():
    async with serve(replace(Stack(), kept=AnswerLimits(most=1))) as stack:
        for key in ("a", "b", "b"):
            async with asking(stack, BODY, idempotency_key=key) as task:
                await task
    text = stack.metrics.render()[0].decode()
    assert "onegpu_idempotency_answers 1.0" in text
    assert f"onegpu_idempotency_bytes {stack.answers.size:.1f}" in text
    for outcome, count in (("first", 2), ("replayed", 1), ("dropped", 1)):
        assert f'onegpu_idempotency_total{{outcome="{outcome}"}} {count}.0' in text
