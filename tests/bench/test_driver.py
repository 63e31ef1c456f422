"""Rows against a real server over an engine that answers what the test says."""

from __future__ import annotations

import asyncio
import json

import pytest

from server.bench.client import Target
from server.bench.dialogues import Question, conversation, forever, once
from server.bench.driver import Driver, Limits, Peer
from server.bench.probe import PeerError, probe, tokens_per_word
from server.bench.scenarios import SCENARIOS, Row
from server.bench.session import Plan, run
from server.bench.statistics import Measured, figures
from server.bench.texts import TOKENS_PER_WORD, Texts
from tests.bench.conftest import DONE, HEAD, answering, chunk
from tests.fakes import FakeEngine, FakeStream, Script
from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio


def peer_of(stack: Stack, **fields) -> Peer:
    return Peer("it", Target("127.0.0.1", int(stack.url.rpartition(":")[2])), MODEL, **fields)


def shorts(count: int) -> list:
    said = [[{"role": "user", "content": f"question {i}"}] for i in range(count)]
    return [once(Question(messages, 8, f"q{i}")) for i, messages in enumerate(said)]


class Kept:
    live = False

    def __init__(self) -> None:
        self.all: list[Measured] = []
        self.told: list[tuple[str, int]] = []

    def doing(self, what: str, answered: int, seconds: float) -> None:
        self.told.append((what, answered))

    def measured(self, measured: Measured) -> None:
        self.all.append(measured)


async def test_every_scenario_runs_on_a_real_server() -> None:
    kept = Kept()
    engine = FakeEngine(script=lambda _: Script(texts=("Hello", " there"), cached=8))
    async with serve(Stack(engine=engine, max_queue=64)) as stack:
        probed = await probe(peer_of(stack), str)
        per_word = await tokens_per_word(probed)
        limits = Limits(request=30, row=30)  # a row that does not end is to fail, not to hang
        plan = Plan([(one, 4) for one in SCENARIOS], 1, 1, per_word, limits)
        await run(plan, [probed.peer], kept)

    assert probed.peer.left_out == ()
    assert probed.tells_cached
    # A token is a byte here: letters of a word, a blank, and full stops.
    assert 6 < per_word < 9
    assert [one.scenario for one in kept.all] == [
        name
        for one in SCENARIOS
        for name in ([one.name] * 2 if one.name in ("agents", "rotate") else [one.name])
    ]
    for one in kept.all:
        found = figures(one)
        assert found.errors == 0, (one.scenario, found.codes)
        assert found.cached_tokens == 8 * found.requests > 0
        assert found.first_p50 > 0
        assert one.unasked == 0
    assert kept.told[0] == ("short @4, round 1/1, it", 0)


async def test_sizes_are_the_servers_tokens() -> None:
    async with serve(Stack(max_queue=64)) as stack:
        per_word = await tokens_per_word(await probe(peer_of(stack), str))
        before = len(stack.engine.requests)
        agents = next(one for one in SCENARIOS if one.name == "agents")
        plan = Plan([(agents, 1)], rounds=1, seed=1, tokens_per_word=per_word)
        await run(plan, [peer_of(stack)], Kept())

    lengths = [len(request.prompt) for request in stack.engine.requests[before:]]
    assert all(1380 < length < 1500 for length in lengths), lengths
    assert {request.max_tokens for request in stack.engine.requests[before:]} == {32}


async def test_no_more_at_once_than_there_are_users_and_all_are_asked() -> None:
    engine = FakeEngine(manual=True)
    async with serve(Stack(engine=engine)) as stack:
        driver = Driver(peer_of(stack), Row(shorts(6), users=2), Limits())
        playing = asyncio.create_task(driver.play())
        most = 0
        for number in range(1, 7):
            await engine.submitted(min(number + 1, 6))
            most = max(most, len(engine.waiting))
            stream = engine.waiting[0]
            engine.begin(stream)
            engine.say(stream, "word")
            engine.finish(stream)
        await playing

    assert most == 2
    assert [one.kind for one in driver.outcomes] == [f"q{i}" for i in range(6)]


async def test_conversations_take_turns_unless_a_user_stays_with_one() -> None:
    orders = []
    for sticky in (False, True):
        async with serve(Stack()) as stack:
            tasks = [conversation(Texts("1"), 2, 5, 4, i) for i in range(2)]
            await Driver(peer_of(stack), Row(tasks, 1, sticky=sticky), Limits()).play()
        orders.append([len(request.prompt) for request in stack.engine.requests])

    by_turns, one_by_one = orders
    assert max(by_turns[:2]) < min(by_turns[2:])
    assert one_by_one[0] < one_by_one[1] > one_by_one[2] < one_by_one[3]


async def test_streams_run_before_the_first_document_and_until_the_last() -> None:
    engine = FakeEngine(manual=True)
    answered = asyncio.Queue[None]()
    async with serve(Stack(engine=engine)) as stack:
        row = Row(shorts(1), 1, beside=[forever(Texts("1"), 5, 8, "s")])
        driver = Driver(peer_of(stack), row, Limits(row=30), lambda: answered.put_nowait(None))
        playing = asyncio.create_task(driver.play())

        async def under_way(number: int) -> FakeStream:
            stream = await engine.submitted(number)
            engine.begin(stream)
            engine.say(stream, "some words")
            return stream

        stream = await under_way(1)
        document = await under_way(2)
        assert b"question 0" in bytes(token for token in document.request.prompt if token < 256)
        engine.finish(stream)
        await answered.get()
        another = await under_way(3)
        engine.finish(document)
        await answered.get()
        engine.finish(another)
        await playing

    assert [(one.kind, one.good) for one in driver.outcomes] == [
        ("stream", True),
        ("q0", True),
        ("stream", True),
    ]
    assert len(engine.requests) == 3, "after the last document no stream begins"
    first, asked, _ = driver.outcomes
    assert asked.begin >= first.begin + first.first, "the stream had its first token before"


async def test_a_row_ends_in_time_and_says_what_was_left() -> None:
    engine = FakeEngine(manual=True)
    async with serve(Stack(engine=engine)) as stack:
        driver = Driver(peer_of(stack), Row(shorts(5), 2), Limits(row=0.2))
        await driver.play()

    assert [one.code for one in driver.outcomes] == ["TimeoutError"] * 2
    assert driver.unasked == 3


async def test_refusals_are_counted_and_not_hammered() -> None:
    body = json.dumps({"error": {"message": "full", "code": "queue_full"}}).encode()
    head = b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with answering([head + body]) as (target, asked):
        driver = Driver(Peer("it", target, "m"), Row(shorts(50), 1), Limits(row=0.2))
        await driver.play()

    assert len(asked) == 1, "it was told to come back in a second"
    assert driver.outcomes[0].code == "queue_full"
    assert driver.unasked == 49


@pytest.mark.parametrize("refused", [("top_k",), ("ignore_eos", "stream_options")])
async def test_fields_that_a_server_refuses_are_left_out(refused) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(size))
        if any(name in body for name in refused):
            writer.write(b"HTTP/1.1 400 No\r\ncontent-length: 2\r\n\r\n{}")
        else:
            writer.write(HEAD + chunk("hi") + chunk(finish="stop") + DONE)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1])
        probed = await probe(Peer("it", target, "m"), str)

    assert probed.peer.left_out == refused
    assert not probed.tells_usage
    assert await tokens_per_word(probed) == TOKENS_PER_WORD
    assert any("chunks are counted" in remark for remark in probed.remarks())


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 400 No\r\ncontent-length: 22\r\n\r\n" + b'{"error": "bad model"}', "bad model"),
        (b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\n{}", "401.*--key-from"),
        (b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\n{}", "404.*--model"),
        (b"HTTP/1.1 308 Moved\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "answered 308"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "in one piece"),
        (HEAD + chunk(finish="stop") + DONE, "streams no text"),
        (b"", "cannot be asked"),
    ],
)
async def test_a_server_that_cannot_be_measured_is_told_why(answer, says) -> None:
    async with answering([answer]) as (target, _):
        with pytest.raises(PeerError, match=says):
            await probe(Peer("it", target, "m"), str)


async def test_a_server_that_loads_is_waited_for() -> None:
    answers = [
        b"HTTP/1.1 503 Loading\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + chunk("hi") + chunk(finish="stop") + DONE,
    ]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        writer.close()

    told: list[str] = []
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1])
        probed = await probe(Peer("it", target, "m"), told.append)

    assert probed.peer.left_out == ()
    assert told[0].startswith("it is not ready")
