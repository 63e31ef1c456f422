"""What is read from a server's bytes, and what becomes of answers that are not whole."""

from __future__ import annotations

import asyncio
import json

import pytest

from server.bench.client import EventStream, Outcome, Target, ask
from tests.bench.conftest import DONE, HEAD, answering, chunk, chunked, cut

pytestmark = pytest.mark.anyio
USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 32},
}
ANSWER = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    + chunk("Hé")
    + b": queued 3/12\n\n"
    + chunk("llo")
    + chunk(finish="stop")
    + b"data: "
    + json.dumps({"choices": [], "usage": USAGE}).encode()
    + b"\n\n"
    + DONE
)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 4096])
async def test_a_stream_is_read_however_it_is_cut(size) -> None:
    async with answering(cut(chunked(ANSWER, size), 5)) as (target, asked):
        outcome = await ask(target, b'{"a": 1}', 10)

    assert outcome.good
    assert outcome.text == "Héllo"
    assert len(outcome.arrivals) == 2, "the empty text of the role is no token"
    assert 0 < outcome.first <= outcome.total
    assert outcome.gaps == [outcome.arrivals[1] - outcome.arrivals[0]]
    assert (outcome.prompt_tokens, outcome.cached, outcome.tokens) == (40, 32, 3)
    assert asked[0].endswith(b'\r\n\r\n{"a": 1}')
    assert b"\r\nAuthorization: Bearer secret\r\n" in asked[0]


async def test_line_ends_of_two_characters_and_a_close_instead_of_done() -> None:
    data = (chunk("a") + chunk("b") + chunk(finish="length")).replace(b"\n", b"\r\n")
    async with answering([HEAD + data]) as (target, _):
        outcome = await ask(target, b"{}", 10)

    assert outcome.good
    assert outcome.text == "ab"
    assert outcome.tokens == 2, "without usage, chunks are counted"
    assert outcome.prompt_tokens is None


async def test_reasoning_and_tool_calls_are_tokens_too() -> None:
    deltas: list[dict[str, object]] = [
        {"reasoning_content": "hm"},
        {"reasoning": "so"},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "chart", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ]
    events = [b"data: " + json.dumps({"choices": [{"delta": d}]}).encode() for d in deltas]
    async with answering([HEAD, b"\n\n".join([*events, b""]) + DONE]) as (target, _):
        outcome = await ask(target, b"{}", 10)

    assert outcome.good
    assert len(outcome.arrivals) == 4
    assert outcome.called == ["chart"]
    assert outcome.text == ""


async def test_another_servers_count_of_cached_tokens_is_found() -> None:
    last = chunk(
        finish="stop", usage={"prompt_tokens": 9, "completion_tokens": 1}, timings={"cache_n": 7}
    )
    async with answering([HEAD + chunk("a") + last + DONE]) as (target, _):
        assert (await ask(target, b"{}", 10)).cached == 7


@pytest.mark.parametrize(
    ("pieces", "reset", "status", "code"),
    [
        ([HEAD + chunk("a")], False, 0, "ConnectionResetError"),
        ([chunked(chunk("a"), 9)], False, 0, "ConnectionResetError"),
        ([HEAD + chunk("a")], True, 0, "ConnectionResetError"),
        ([], False, 0, "ConnectionResetError"),
        ([b"SSH-2.0-OpenSSH_9.9\r\n"], False, 0, "ConnectionError"),
        (
            [HEAD + chunk("a") + b'data: {"error": {"message": "m", "code": "engine_dead"}}\n\n'],
            False,
            200,
            "engine_dead",
        ),
        ([HEAD + b"data: hello\n\n"], False, 200, "malformed"),
        ([HEAD + b"data: [1]\n\n"], False, 200, "malformed"),
    ],
)
async def test_what_is_not_whole_is_no_answer(pieces, reset, status, code) -> None:
    async with answering(pieces, reset=reset) as (target, _):
        outcome = await ask(target, b"{}", 10)

    assert not outcome.good
    assert (outcome.status, outcome.code) == (status, code)
    assert outcome.message


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"error": {"message": "m", "type": "t", "param": null, "code": "full"}}', "full", "m"),
        (b'{"error": {"message": "m", "type": "t", "code": null}}', "t", "m"),
        (b'{"error": "text"}', "error", "text"),
        (b'{"detail": "Not Found"}', "error", "Not Found"),
        (b"<html>Bad Gateway</html>", "malformed", "<html>Bad Gateway</html>"),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
async def test_a_refusal_is_told_in_its_words(body, code, message, sized) -> None:
    size = b"content-length: %d\r\n" % len(body) if sized else b""
    head = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n" + size + b"\r\n"
    async with answering([head, body]) as (target, _):
        outcome = await ask(target, b"{}", 10)

    assert (outcome.status, outcome.code, outcome.message) == (503, code, message)
    assert outcome.retry_after == 7
    assert not outcome.good


async def test_an_answer_in_one_piece_is_seen() -> None:
    body = b'{"choices": [{"message": {"content": "whole"}}]}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    async with answering([head + body]) as (target, _):
        outcome = await ask(target, b"{}", 10)

    assert outcome.good
    assert not outcome.streamed
    assert outcome.arrivals == []


async def test_nobody_listening_is_an_outcome() -> None:
    async with answering([]) as (target, _):
        pass

    outcome = await ask(target, b"{}", 10)

    assert (outcome.status, outcome.code) == (0, "ConnectionRefusedError")


async def test_patience_ends() -> None:
    silence = asyncio.Event()

    async def handle(reader, writer) -> None:
        await silence.wait()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = await ask(Target("127.0.0.1", port), b"{}", 0.05)
        silence.set()

    assert (outcome.status, outcome.code) == (0, "TimeoutError")
    assert "0.05 s" in outcome.message


async def test_the_beginning_is_told_once_and_at_the_first_token() -> None:
    told: list[int] = []
    outcome = Outcome()
    events = EventStream(outcome, lambda: told.append(len(outcome.arrivals)))

    assert not events.push(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n')
    assert told == []
    assert not events.push(chunk("a") + chunk("b"))
    assert events.push(DONE)
    assert told == [0]


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (Target("box", 8000, "/proxy"), b"Host: box:8000"),
        (Target("box", 80), b"Host: box"),
        (Target("::1", 8000), b"Host: [::1]:8000"),
    ],
)
def test_requests_say_whom_they_mean(target, line) -> None:
    head = target.chat(b"{}").split(b"\r\n")

    assert line in head
    assert head[0] == b"POST %b/v1/chat/completions HTTP/1.1" % target.prefix.encode()
    assert not any(name.startswith(b"Authorization") for name in head)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Target("box", 1, key="secret"))
