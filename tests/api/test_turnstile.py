"""Requests that are refused whatever they ask: the same answer, before their body is looked at."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace

import httpx
import pytest

from server.core.errors import InvalidApiKey
from server.gateway.host import HostState
from server.gateway.line import LineLimits
from server.gateway.principal import Principal
from server.gateway.rate_limit import RateLimits
from server.store.keys import KeyLimits
from tests.fakes import FakeEngine
from tests.serving import MODEL, Stack, adopted, serve

pytestmark = pytest.mark.anyio
PATHS = ("/v1/chat/completions", "/v1/completions")
CHAT = PATHS[0]
ODD = b'{"messages": "no list", "prompt": {}}'
"""Whoever looks at it says 400."""
LONG = b'{"messages": [], "prompt": "x"' + b" " * 66_000 + b"}"
GOOD = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


class OneKey:
    """Lets everybody in with a key of their own."""

    def authenticate(self, presented, address):
        del presented, address
        return Principal("key_1", "somebody", KeyLimits(rpm=1, burst=2, max_concurrent=1))


@pytest.fixture
def stack():
    made = Stack(engine=FakeEngine(manual=True))
    yield made
    made.service.shutdown()


def fill(stack):
    """Take every place there is."""
    return stack.service.router.default.host.lane.admit(4 + stack.max_queue)


async def post(stack, body, path=CHAT, **headers):
    transport = httpx.ASGITransport(stack.app)
    headers = {"content-type": "application/json", **headers}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, content=body, headers=headers)


def told(answer):
    volatile = {"x-request-id", "openai-processing-ms", "x-ratelimit-reset-requests"}
    return (
        answer.status_code,
        answer.json(),
        {name: value for name, value in answer.headers.items() if name not in volatile},
    )


@pytest.mark.parametrize("path", PATHS)
async def test_a_full_line_refuses_before_the_body_is_looked_at(stack, path, caplog):
    caplog.set_level(logging.INFO)
    ticket = fill(stack)
    answer = await post(stack, ODD, path, **{"x-request-id": "abc"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "queue_full")
    assert set(error) == {"message", "type", "param", "code"}
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["openai-processing-ms"].isdecimal()
    assert stack.admission.counters == {"admitted": 1, "queue_full": 1}
    metrics = stack.metrics.render()[0].decode().splitlines()
    assert f'onegpu_requests_total{{endpoint="{path}",status="503"}} 1.0' in metrics
    assert 'onegpu_errors_total{code="queue_full"} 1.0' in metrics
    (line,) = [record for record in caplog.records if record.name == "onegpu.access"]
    assert line.getMessage() == f"POST {path} 503"
    assert vars(line)["facts"]["code"] == "queue_full"
    ticket.release()
    assert (await post(stack, ODD, path)).status_code == 400


async def test_a_draining_server_refuses_before_the_body_is_looked_at(stack):
    stack.admission.drain()
    answer = await post(stack, ODD)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert answer.headers["retry-after"]


async def test_a_key_at_its_limit_is_told_the_time_before_the_body_is_looked_at():
    stack = Stack(rate=RateLimits(requests_per_minute=12, burst=3))
    for left in (2, 1, 0):
        answer = await post(stack, json.dumps(GOOD).encode())
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    answer = await post(stack, ODD)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("reason", ["full", "draining", "rate"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_long_body_gets_the_very_same_answer_once_it_is_read(reason, path):
    long = LONG.replace(b"[]", b'[{"role": "user", "content": "x"}]')
    stack = Stack(engine=FakeEngine(manual=True), gatekeeper=OneKey())
    if reason == "full":
        fill(stack)
    elif reason == "draining":
        stack.admission.drain()
    else:
        stack.service._rate.take("key_1", RateLimits(1, 2, max_concurrent=1))
    short = await post(stack, ODD, path)
    assert told(short) == told(await post(stack, long, path))
    assert short.headers["x-ratelimit-limit-requests"] == "1"


async def test_a_long_body_is_read_and_checked(stack):
    fill(stack)
    assert (await post(stack, LONG)).status_code == 400


async def test_who_has_no_key_is_told_that_first(stack):
    class Nobody:
        def authenticate(self, presented, address):
            del presented, address
            raise InvalidApiKey("no key")

    guarded = replace(stack, gatekeeper=Nobody())
    fill(guarded)
    assert (await post(guarded, ODD)).status_code == 401
    assert guarded.admission.counters["queue_full"] == 0


async def test_an_announced_body_over_the_limit_is_told_that_first(stack):
    small = stack.with_api(max_body=20)
    fill(small)
    assert (await post(small, ODD)).status_code == 413


async def test_while_a_model_loads_that_is_what_is_told(stack):
    host = stack.hosts.hosts[0]
    fill(stack)
    host.state = HostState.LOADING
    answer = await post(stack, json.dumps(GOOD).encode())
    assert answer.json()["error"]["code"] == "model_loading"


async def test_while_another_model_has_room_the_body_says_which_is_meant(stack):
    stack.admission.limits = LineLimits(8)
    other = adopted(FakeEngine(), stack.admission, "other")
    ticket = fill(stack)
    assert (await post(stack, ODD)).status_code == 400
    other.lane.admit(4)
    assert (await post(stack, ODD)).status_code == 503
    ticket.release()


async def test_other_paths_and_methods_are_not_held_up(stack):
    fill(stack)
    assert (await post(stack, b'{"content": "x"}', "/tokenize")).status_code == 200
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get(CHAT)).status_code == 405


async def exchange(stack, *messages):
    """Call the application; return what it took and sent, in order."""
    happened, left = [], list(messages)

    async def receive():
        happened.append("receive")
        return left.pop(0) if left else await asyncio.Future()

    async def send(message):
        happened.append(message["type"])

    length = b"%d" % len(ODD)
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [(b"content-length", length)],
        "client": ("127.0.0.1", 4711),
    }
    await stack.app(scope, receive, send)
    return happened


ANSWER = ["http.response.start", "http.response.body"]


async def test_the_answer_comes_after_the_body_as_closing_before_it_resets_the_connection(stack):
    fill(stack)
    first = {"type": "http.request", "body": ODD[:5], "more_body": True}
    rest = {"type": "http.request", "body": ODD[5:], "more_body": False}
    assert await exchange(stack, first, rest) == ["receive", "receive", *ANSWER]


async def test_who_never_sends_the_body_is_answered_all_the_same(stack):
    hasty = stack.with_api(write_timeout=0.01)
    fill(hasty)
    assert await exchange(hasty) == ["receive", *ANSWER]


async def test_the_connection_lives_on():
    stack = Stack(engine=FakeEngine())
    async with serve(stack):
        ticket = fill(stack)
        host, port = stack.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(GOOD).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        statuses = []
        async with asyncio.timeout(20):
            for turn in range(3):
                writer.write(head + body)
                answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                statuses.append(int(answer.split()[1]))
                size = answer.split("content-length: ")[1].split("\r\n")[0]
                await reader.readexactly(int(size))
                assert "connection: close" not in answer
                if turn == 1:
                    ticket.release()
        writer.close()
        await writer.wait_closed()
    assert statuses == [503, 503, 200]
