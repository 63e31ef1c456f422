"""What remotes send in odd but lawful forms, and what they send that no client could read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from server.gateway.rate_limit import RateLimits
from tests.api.test_remote import asking, error_of, far, house, lines_of, post, saying
from tests.remotes import KEY, Exchange, FakeRemote, chunk, usage
from tests.standby import Trio

pytestmark = pytest.mark.anyio


def raw(*parts: bytes, kind: str = "text/event-stream"):
    async def behave(exchange: Exchange) -> None:
        await exchange.head(kind=kind)
        for part in parts:
            await exchange.part(part)

    return behave


def texts(lines: list[str]) -> str:
    documents = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert not any("error" in one for one in documents), documents
    deltas = [choice["delta"] for one in documents for choice in one["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


SAID = json.dumps(chunk("grüße "), ensure_ascii=False).encode()
END = json.dumps(chunk("dich", reason="stop")).encode()


@pytest.mark.parametrize(
    "parts",
    [
        (
            b"retry: 3000\n\nevent: ping\n\nid: 7\n\ndata:\n\n",
            b"data: %b\n\n" % SAID,
            b"data: %b\n\n" % END,
        ),
        (b"\xef\xbb\xbfdata: %b\n\n" % SAID, b"data:%b\n\n" % END),
        (b"data: %b\r\n\r\ndata: %b\r\n\r\n" % (SAID, END), b"data: [DONE]\r\n\r\n"),
        (b"data: %b\r\rdata: %b\r\r" % (SAID, END), b"data: [DONE]\r\r"),
        (b"data: %b\r" % SAID, b"\n\r", b"\ndata: %b\r\n\r\n" % END),
        (b"data: %b\n" % SAID[:10], b"data: %b\n\n" % SAID[10:], b"data: %b\n\n" % END),
        tuple(bytes([one]) for one in b"data: %b\n\ndata: %b\n\n" % (SAID, END)),
        (
            b": %b\n" % (b"x" * 70_000),
            b"data: %b\n\ndata: %b\n\n" % (SAID, END),
            b"data: [DONE] \n\n",
        ),
    ],
    ids=["events without data", "bom", "crlf", "cr", "split crlf", "lines", "bytes", "comments"],
)
async def test_every_lawful_form_of_a_stream_is_read(parts):
    if parts[0].startswith(b"data: %b\n" % SAID[:10]):
        # A line break is white space to JSON where it stands between tokens only.
        head, tail = SAID.split(b", ", 1)
        parts = (b"data: %b,\ndata: %b\n\n" % (head, tail), *parts[2:])
    async with house(FakeRemote(raw(*parts))) as stack:
        assert texts(await lines_of(stack)) == "grüße dich"


async def test_a_stream_is_utf_8_whatever_its_head_says():
    kind = "text/event-stream; charset=iso-8859-1"
    behave = raw(b"data: %b\n\ndata: %b\n\n" % (SAID, END), kind=kind)
    async with house(FakeRemote(behave)) as stack:
        assert texts(await lines_of(stack)) == "grüße dich"


@pytest.mark.parametrize("stream", [False, True])
async def test_numbers_that_json_does_not_have_reach_no_client(stream):
    logprobs: dict[str, Any] = {
        "content": [{"token": "x", "logprob": "INF", "bytes": None, "top_logprobs": []}]
    }
    choice = {"index": 0, "finish_reason": "stop", "logprobs": logprobs}
    choice["delta"] = {"content": "x"}
    text = json.dumps({"choices": [choice]}).replace('"INF"', "-1e999")
    async with house(FakeRemote(saying(text, "[DONE]"))) as stack:
        answer = await post(stack, stream=stream, logprobs=True)
    assert error_of(answer) == (502, "remote_failed"), answer.text


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_passed_on_is_not_left_out_silently(stream):
    said = {"function_call": {"name": "look", "arguments": "{}"}, "content": None}
    choice = {"index": 0, "finish_reason": "function_call"}
    choice["delta"] = said
    async with house(FakeRemote(saying({"choices": [choice]}, "[DONE]"))) as stack:
        answer = await post(stack, stream=stream)
    assert error_of(answer) == (502, "remote_failed")
    assert "function_call" in answer.json()["error"]["message"]


async def test_an_estimate_counts_the_text_and_not_its_wrapping():
    words = [chunk("abcd") for _ in range(50)]
    remote = FakeRemote(saying(*words, chunk(reason="stop"), "[DONE]"))
    trio = Trio(rate=RateLimits(tokens_per_minute=1000))
    async with house(remote, trio=trio) as stack:
        await post(stack, stream=True, max_tokens=60)
        again = await post(stack, stream=True, max_tokens=60)
    left = int(again.headers["x-ratelimit-remaining-tokens"])
    assert left >= 1000 - (50 + 60) - 20, "50 tokens of four bytes, and 60 reserved"


async def test_a_try_that_speaks_lets_others_ask_while_it_goes_on():
    gate = asyncio.Event()

    async def long(exchange: Exchange) -> None:
        await exchange.say(chunk("one"))
        await gate.wait()
        await exchange.say(chunk(reason="stop"), usage(), "[DONE]")

    async def fail(exchange: Exchange) -> None:
        await exchange.answer(500, {})

    remote = FakeRemote(fail)
    async with house(remote) as stack:
        for _ in range(2):
            await post(stack)
        stack.still.advance(30)
        remote.next = [long]
        remote.behave = FakeRemote().behave
        async with asking(stack) as task:
            lines = (await task).aiter_lines()
            assert "one" in "".join([await anext(lines) for _ in range(3)])
            answer = await post(stack)
            gate.set()
            rest = [line async for line in lines if line]
    assert answer.status_code == 200, answer.text
    assert rest[-1] == "data: [DONE]"
    assert far(stack).up


@pytest.mark.parametrize(
    "said",
    [
        f"Authorization: Bearer {KEY}",
        chunk(reason=KEY),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": [KEY]}]},
    ],
)
async def test_what_cannot_be_used_is_not_repeated_to_clients(said):
    async with house(FakeRemote(saying(said, "[DONE]"))) as stack:
        answer = await post(stack, stream=True)
    assert error_of(answer) == (502, "remote_failed")
    assert KEY[:12] not in answer.text


async def test_every_log_probability_is_passed_on_once():
    def told(token: str):
        return {"content": [{"token": token, "logprob": -1.0, "bytes": None, "top_logprobs": []}]}

    both = chunk("a", tool_calls=[{"index": 0, "id": "c", "function": {"name": "f"}}])
    empty, end = chunk(""), chunk(reason="tool_calls")
    both["choices"][0]["logprobs"], empty["choices"][0]["logprobs"] = told("a"), told("half")
    async with house(FakeRemote(saying(both, empty, end, "[DONE]"))) as stack:
        lines = await lines_of(stack, logprobs=True)
        whole = (await post(stack, logprobs=True)).json()
    shown = [json.loads(line[6:])["choices"][0]["logprobs"] for line in lines[:-1]]
    assert [one["content"][0]["token"] for one in shown if one] == ["a", "half"]
    joined = whole["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in joined] == ["a", "half"]


async def test_a_whole_answer_may_take_as_long_as_its_remote_goes_on_writing():
    async def slowly(exchange: Exchange) -> None:
        await exchange.say(chunk("word "))
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begun + 3.0:
            await asyncio.sleep(0.1)
            await exchange.say(chunk("word "))
        await exchange.say(chunk(reason="stop"), "[DONE]")

    remote = FakeRemote(slowly)
    async with house(remote, read_timeout=2.0) as stack:
        answer = await post(stack)
        assert far(stack).requests == {"ok": 1}
    assert answer.json()["choices"][0]["message"]["content"].startswith("word word word ")
    assert remote.exchanges[0].body["stream"] is True
