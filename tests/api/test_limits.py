"""Rate limits, deadlines and the time for a whole answer, as clients see them."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import openai
import pytest

from server.gateway.rate_limit import RateLimits
from tests.fakes import FakeEngine
from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hello"}
BODY = {"model": MODEL, "messages": [USER]}
REPORTS = RateLimits(requests_per_minute=12, burst=3)


async def ask(stack, headers=None, **fields):
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(CHAT, json={**BODY, **fields}, headers=headers)


def rates(answer):
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in answer.headers.items()
        if name.startswith("x-ratelimit-")
    }


async def test_twelve_a_minute_with_a_burst_of_three():
    stack = Stack(rate=REPORTS)
    for left in (2, 1, 0):
        answer = await ask(stack)
        assert answer.status_code == 200
        assert rates(answer)["limit-requests"] == "12"
        assert rates(answer)["remaining-requests"] == str(left)
    answer = await ask(stack)
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    assert int(answer.headers["retry-after-ms"]) <= 1000 * int(answer.headers["retry-after"])
    assert "x-should-retry" not in answer.headers
    assert rates(answer)["remaining-requests"] == "0"
    assert stack.admission.outstanding == 0


async def test_what_was_refused_or_wrong_counts_as_no_request():
    stack = Stack(rate=REPORTS)
    for _ in range(5):
        assert (await ask(stack, max_tokens=5000)).status_code == 400
        assert (await ask(stack, temperature="hot")).status_code == 400
    answer = await ask(stack)
    assert rates(answer)["remaining-requests"] == "2"


async def test_tokens_are_reserved_with_the_output_and_come_back():
    stack = Stack(rate=RateLimits(tokens_per_minute=1000), engine=FakeEngine(manual=True))
    stack = stack.with_api(stream_hold=0.0)
    async with serve(stack), httpx.AsyncClient(base_url=stack.url, timeout=20) as client:
        held = client.stream("POST", CHAT, json={**BODY, "stream": True, "max_tokens": 900})
        async with (
            held as opened,
            openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as second,
        ):
            stream = await stack.engine.submitted()
            assert int(opened.headers["x-ratelimit-remaining-tokens"]) < 100
            with pytest.raises(openai.RateLimitError, match="tokens per minute"):
                await second.chat.completions.create(**BODY, max_tokens=200)
            stack.engine.begin(stream)
            stack.engine.finish(stream, completion=5)
            async for _ in opened.aiter_bytes():
                pass
        answer = await client.post(CHAT, json={**BODY, "max_tokens": 5000})
        assert answer.status_code == 400
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 900


async def test_without_limits_there_are_no_headers():
    answer = await ask(Stack())
    assert rates(answer) == {}


@pytest.mark.parametrize("text", ["soon", "1.5", "", "9" * 13, "0x10", "\t-"])
async def test_a_deadline_must_be_whole_milliseconds(text):
    answer = await ask(Stack(), {"x-request-deadline-ms": text})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-request-deadline-ms"


async def test_two_deadlines_that_differ_are_none():
    stack = Stack()
    name = "x-request-deadline-ms"
    answer = await ask(stack, [(name, "5000"), (name, "9000")])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
    assert (await ask(stack, [(name, "5000"), (name, "5000")])).status_code == 200


async def test_a_deadline_counts_from_the_requests_arrival_not_from_its_bodys_end():
    async def slowly():
        whole = json.dumps(BODY).encode()
        yield whole[:10]
        await asyncio.sleep(0.1)
        yield whole[10:]

    stack = Stack()
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(CHAT, content=slowly(), headers={"x-request-deadline-ms": "100"})
    assert answer.status_code == 503
    assert "has passed" in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", ["0", "-5"])
async def test_a_deadline_that_has_passed_is_refused_at_once(text):
    stack = Stack()
    answer = await ask(stack, {"x-request-deadline-ms": text})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "deadline_unreachable"
    assert answer.headers["retry-after"]
    assert not stack.engine.requests
    assert stack.admission.outstanding == 0


async def test_a_deadline_the_line_cannot_meet_is_refused_with_the_estimate():
    stack = Stack(engine=FakeEngine(manual=True))
    lane = stack.service.router.default.host.lane
    lane._rate.observe(20.0, 2)
    ticket = lane.admit(6)
    ticket.price([1.0] * 6, lambda _index, _rank: None)
    answer = await ask(stack, {"x-request-deadline-ms": "5000"})
    assert answer.status_code == 503
    assert "about 30.0 s" in answer.json()["error"]["message"]
    ticket.release()
    assert stack.admission.outstanding == 0


async def test_a_deadline_that_passes_under_way_is_told_as_people_write_it():
    stack = Stack(engine=FakeEngine(manual=True))
    answer = await ask(stack, {"x-request-deadline-ms": "200"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "total_timeout")
    assert re.search(r"after 0\.\d{1,2} s, the limit", answer.json()["error"]["message"])


async def test_a_deadline_that_passes_in_the_line_ends_the_wait():
    stack = Stack(engine=FakeEngine(manual=True))
    held = stack.service.router.default.host.lane.admit(8)
    held.price([1.0] * 8, lambda _index, _rank: None)
    answer = await ask(stack, {"x-request-deadline-ms": "100"})
    assert answer.status_code in (503, 504)
    assert answer.json()["error"]["code"] in ("queue_timeout", "total_timeout")
    held.release()
    assert stack.admission.outstanding == 0


async def test_the_servers_own_total_is_bounded():
    stack = Stack(engine=FakeEngine(manual=True), total_timeout=0.05)
    answer = await ask(stack)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "total_timeout"
    assert answer.headers["x-should-retry"] == "false"
    assert stack.admission.outstanding == 0


async def test_a_wait_in_the_line_ends_with_the_connect_timeout_and_advice():
    stack = Stack(engine=FakeEngine(manual=True), connect_timeout=0.05)
    held = stack.service.router.default.host.lane.admit(8)
    held.price([1.0] * 8, lambda _index, _rank: None)
    answer = await ask(stack)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "queue_timeout"
    assert re.search(r"within 0\.\d{1,2} s\.", answer.json()["error"]["message"])
    assert int(answer.headers["retry-after"]) >= 1
    assert "x-should-retry" not in answer.headers
    held.release()
    assert not stack.engine.requests
