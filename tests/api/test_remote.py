"""Models of other servers, asked over real connections: by name, and in place of others."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging

import httpx
import openai
import pytest

from server.api.limits import ApiLimits
from server.core.errors import EngineDead
from server.gateway.aliases import Alias
from server.gateway.rate_limit import RateLimits
from server.gateway.remote import address
from server.gateway.remote.watch import RemoteWatch
from server.gateway.routing import Routes
from tests.api.asking import under_way
from tests.remotes import KEY, Exchange, FakeRemote, chunk, distant, remote_server, usage
from tests.serving import MODEL, serve
from tests.standby import DEFAULT, Trio

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
NOWHERE = "http://127.0.0.1:1/v1"
REASONS = DEFAULT | {"remote"}


@contextlib.asynccontextmanager
async def house(*remotes: FakeRemote, trio: Trio | None = None, clock=None, **limits):
    """A server that knows `far` (and `farther`, …), first in line for the usual model."""
    stack = trio or Trio(api=ApiLimits(comment_every=0.05))
    names = ["far", "farther"][: len(remotes)]
    async with contextlib.AsyncExitStack() as running:
        for one in remotes:
            await running.enter_async_context(remote_server(one))
        made = {
            name: distant(stack, name, one.url, clock or stack.still, **limits)
            for name, one in zip(names, remotes, strict=True)
        }
        route(stack, made)
        await running.enter_async_context(serve(stack))
        try:
            yield stack
        finally:
            await asyncio.gather(*(one.remote.close() for one in made.values()))
    assert stack.admission.outstanding == 0


def route(stack: Trio, made, *targets: str) -> None:
    lists = {MODEL: targets or tuple(made)}
    aliases = {"gpt": Alias("gpt", (("far", 1.0),))}
    stack.service.router.routes = Routes(aliases, lists, REASONS, made)


def far(stack: Trio):
    return stack.service.router.routes.remotes["far"].remote


async def post(stack: Trio, path: str = CHAT, headers=None, **body):
    body = {"model": "far", **body}
    if path == CHAT:
        body.setdefault("messages", HELLO)
    async with httpx.AsyncClient(base_url=stack.url, timeout=20, trust_env=False) as client:
        return await client.post(path, json=body, headers=headers)


def asking(stack: Trio, **body):
    return under_way(stack, {"model": "far", "messages": HELLO, "stream": True, **body})


async def lines_of(stack: Trio, **body) -> list[str]:
    async with asking(stack, **body) as task:
        answer = await task
        assert answer.status_code == 200
        return [line async for line in answer.aiter_lines() if line]


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# By name


async def test_the_official_client_streams_from_a_remote():
    remote = FakeRemote()
    async with (
        house(remote) as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="mine", max_retries=0) as client,
    ):
        options = {"include_usage": True}
        stream = await client.chat.completions.create(
            model="far", messages=HELLO, stream=True, stream_options=options, temperature=0.5
        )
        chunks = [one async for one in stream]
    assert {(one.id, one.created, one.model) for one in chunks} == {
        (chunks[0].id, chunks[0].created, "far")
    }
    assert chunks[0].id.startswith("chatcmpl-")
    assert [one.choices[0].delta.role for one in chunks[:2]] == ["assistant", None]
    texts = [one.choices[0].delta.content for one in chunks[:-1]]
    assert texts == ["", "from ", "afar", None]
    assert [one.choices[0].finish_reason for one in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (11, 7)
    sent = remote.exchanges[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.body == {
        "model": "theirs",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    }
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert "mine" not in json.dumps(sent.headers), "the client's key is the client's"
    assert not any(name.startswith(("x-stainless", "x-request")) for name in sent.headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_under_an_idempotency_key_asks_a_remote_once(stream):
    remote = FakeRemote()
    async with house(remote) as stack:
        first, again = [
            await post(stack, stream=stream, headers={"idempotency-key": "one"}) for _ in range(2)
        ]
    assert "afar" in first.text
    assert first.text == again.text
    assert again.headers["idempotency-replayed"] == "true"
    assert len(remote.exchanges) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_all_four_kinds_of_answers(path, stream):
    remote = FakeRemote()
    async with house(remote) as stack:
        body = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
        answer = await post(stack, path, stream=stream, **body, cache_prompt=True, own_field=1)
    assert answer.status_code == 200
    assert "x-ignored-fields" not in answer.headers, "the remote was sent everything"
    assert remote.exchanges[0].body["own_field"] == 1
    assert remote.exchanges[0].body["model"] == "theirs"
    if not stream:
        whole = answer.json()
        assert (whole["model"], whole["usage"]["total_tokens"]) == ("far", 18)
        assert whole["id"] != "theirs"
        choice = whole["choices"][0]
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        assert (text, choice["finish_reason"]) == (
            "from afar",
            "stop" if path == CHAT else "length",
        )
        return
    blocks = [block for block in answer.text.split("\n\n") if block]
    assert blocks[-1] == "data: [DONE]"
    chunks = [json.loads(block[6:]) for block in blocks[:-1]]
    assert all(one["choices"] for one in chunks), "no usage unless it is asked for"
    shown = [one["choices"][0] for one in chunks]
    texts = [one["delta"].get("content", "") if path == CHAT else one["text"] for one in shown]
    assert "".join(texts) == "from afar"
    assert shown[-1]["finish_reason"] == ("stop" if path == CHAT else "length")


async def test_tool_calls_come_in_the_form_that_clients_know():
    async def behave(exchange: Exchange) -> None:
        call = {"index": 4, "id": "c1", "type": "function"}
        await exchange.say(
            chunk("well", tool_calls=[{**call, "function": {"name": "f", "arguments": '{"a"'}}]),
            chunk(tool_calls=[{"index": 4, "function": {"arguments": ":1}"}}]),
            chunk(tool_calls=[{"index": 9, "function": {"name": "g"}}]),
            chunk(reason="tool_calls"),
            "[DONE]",
        )

    async with house(FakeRemote(behave)) as stack:
        lines = await lines_of(stack)
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1]]
    assert deltas[1] == {"content": "well"}
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0] == {**calls[0], "index": 0, "id": "c1", "type": "function"}
    assert calls[0]["function"] == {"name": "f", "arguments": ""}
    assert calls[1:3] == [
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]
    assert (calls[3]["index"], calls[3]["function"]["name"]) == (1, "g")
    assert calls[3]["id"].startswith("call_")


async def test_whole_tool_calls_and_several_choices():
    call = {"index": 7, "id": "c1", "type": "function"}
    behave = saying(
        chunk(index=1, tool_calls=[{**call, "function": {"name": "f", "arguments": "{"}}]),
        chunk("h", reasoning_content="h"),
        chunk(index=1, tool_calls=[{"index": 7, "function": {"arguments": "}"}}]),
        chunk(index=1, tool_calls=[{"index": 8, "function": {"name": "g"}}]),
        chunk("i", reasoning_content="m", reason="stop"),
        chunk(index=1, reason="tool_calls"),
        "[DONE]",
    )
    async with house(FakeRemote(behave)) as stack:
        whole = (await post(stack, n=2)).json()
    first, second = whole["choices"]
    assert (first["message"]["content"], first["message"]["reasoning_content"]) == ("hi", "hm")
    assert second["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert second["message"]["content"] is None
    assert [one["function"]["name"] for one in second["message"]["tool_calls"]] == ["f", "g"]
    assert "index" not in second["message"]["tool_calls"][0]
    assert whole["usage"] is None, "what was not told is not made up"


async def test_remotes_are_listed_and_reached_by_an_alias():
    async with house(FakeRemote()) as stack, httpx.AsyncClient(base_url=stack.url) as client:
        listed = {one["id"]: one for one in (await client.get("/v1/models")).json()["data"]}
        assert listed["far"]["owned_by"] == "remote"
        assert (listed["far"]["state"], listed["far"]["context_window"]) == ("ready", None)
        assert listed["gpt"]["alias_of"] == {"far": 1.0}
        assert (await client.get("/v1/models/far")).json() == listed["far"]
        assert KEY not in json.dumps(listed)
        assert "127.0.0.1" not in json.dumps(listed["far"])
        assert (await post(stack, model="gpt")).json()["model"] == "far"
        refused = await client.post("/tokenize", json={"model": "far", "content": "x"})
        assert error_of(refused) == (400, "invalid_request")


# In place of others


@pytest.mark.parametrize("stream", [False, True])
async def test_a_remote_answers_for_a_model_that_cannot(stream):
    remote = FakeRemote()
    async with house(remote) as stack:
        stack.kill(MODEL)
        answer = await post(stack, model=MODEL, stream=stream)
        told = {name: text for name, text in answer.headers.items() if "fallback" in name}
    assert told == {"x-fallback-model": "far", "x-fallback-reason": "dead"}
    assert '"model":"far"' in answer.text


async def test_an_agents_words_go_along():
    from dataclasses import replace

    remote = FakeRemote()
    async with house(remote) as stack:
        first, *rest = stack.service.router.served
        words = {
            "system": "be brief",
            "sampling": {"temperature": 0.2, "top_k": 3},
            "max_tokens": 9,
        }
        agent = replace(first.agent, **words)
        router = type(stack.service.router)
        routes = stack.service.router.routes
        stack.service.router = router([replace(first, agent=agent), *rest], routes)
        stack.kill(MODEL)
        assert (await post(stack, model=MODEL)).status_code == 200
        own = [{"role": "developer", "content": "own"}, *HELLO]
        await post(stack, model=MODEL, messages=own, max_tokens=5, temperature=1)
    bodies = [exchange.body for exchange in remote.exchanges]
    assert bodies[0]["messages"] == [{"role": "system", "content": "be brief"}, *HELLO]
    assert (bodies[0]["temperature"], bodies[0]["max_tokens"]) == (0.2, 9)
    assert bodies[1]["messages"] == own, "the request's own replaces the agent's"
    assert (bodies[1]["temperature"], bodies[1]["max_tokens"]) == (1.0, 5)
    assert "top_k" not in bodies[0]


async def fail(exchange: Exchange) -> None:
    await exchange.answer(500, {"error": {"message": "out of order"}})


async def silent(exchange: Exchange) -> None:
    await exchange.gone()


async def comments(exchange: Exchange) -> None:
    await exchange.head()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while not exchange._gone.is_set():
                await exchange.part(b": still here\n\n")
                await exchange.say(chunk(""))
                await asyncio.sleep(0.01)


async def html(exchange: Exchange) -> None:
    await exchange.head(kind="text/html")
    await exchange.part(b"<html>sign in</html>")


async def squeezed(exchange: Exchange) -> None:
    await exchange.head(content_encoding="gzip")
    events = f"data: {json.dumps(chunk('x', reason='stop'))}\n\ndata: [DONE]\n\n"
    await exchange.part(gzip.compress(events.encode()))


async def elsewhere(exchange: Exchange) -> None:
    await exchange.answer(307, {}, location="/other/chat/completions")


def saying(*documents):
    async def behave(exchange: Exchange) -> None:
        await exchange.say(*documents)

    return behave


GARBAGE = {
    "status": fail,
    "silence": silent,
    "comments": comments,
    "html": html,
    "compressed": squeezed,
    "redirect": elsewhere,
    "no json": saying("{nonsense", "[DONE]"),
    "not a number": saying('{"choices": [{"index": 0, "delta": {}, "x": NaN}]}', "[DONE]"),
    "deep": saying("[" * 100_000),
    "no object": saying("[1]", "[DONE]"),
    "no choices": saying({"id": "x"}, "[DONE]"),
    "error": saying({"error": {"message": "overloaded"}}, "[DONE]"),
    "foreign choice": saying(chunk("x", index=3), "[DONE]"),
    "negative choice": saying(chunk("x", index=-1), "[DONE]"),
    "no text": saying({"choices": [{"index": 0, "delta": {"content": 7}}]}, "[DONE]"),
    "no delta": saying({"choices": [{"index": 0}]}, "[DONE]"),
    "odd finish": saying(chunk(reason="tired"), "[DONE]"),
    "odd usage": saying({"choices": [], "usage": {"prompt_tokens": -1}}, "[DONE]"),
    "nameless call": saying(chunk(tool_calls=[{"index": 0, "function": {}}]), "[DONE]"),
    "nothing": saying("[DONE]"),
    "large event": saying(chunk("x" * 2**20), "[DONE]"),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_what_cannot_be_used_is_passed_over_for_the_next(kind):
    bad, good = FakeRemote(next=[GARBAGE[kind]]), FakeRemote()
    async with house(bad, good, read_timeout=0.3) as stack:
        stack.kill(MODEL)
        answer = await post(stack, model=MODEL, stream=True)
        failed = far(stack).requests["failed"]
    assert answer.headers["x-fallback-model"] == "farther", answer.text
    assert "afar" in answer.text
    assert len(bad.exchanges) == failed == 1, "asked once, and nobody else was sent there"


async def test_a_whole_answer_that_cannot_be_used_is_an_error():
    async def behave(exchange: Exchange) -> None:
        await exchange.answer(200, {"choices": []})

    async with house(FakeRemote(behave)) as stack:
        answer = await post(stack)
    assert error_of(answer) == (502, "remote_failed")
    assert "text/event-stream" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]


async def test_two_targets_down_leave_the_models_own_error():
    async with house(FakeRemote(fail), FakeRemote(silent), read_timeout=0.2) as stack:
        stack.kill(MODEL)
        for stream in (False, True):
            answer = await post(stack, model=MODEL, stream=stream)
            assert error_of(answer) == (503, "engine_dead")
            assert "fake-model is dead" in answer.text


async def test_a_remote_that_is_not_there_is_passed_over():
    good = FakeRemote()
    async with house(good) as stack:
        gone = distant(stack, "gone", NOWHERE, stack.still)
        made = {**stack.service.router.routes.remotes, "gone": gone}
        route(stack, made, "gone", "far")
        stack.kill(MODEL)
        answer = await post(stack, model=MODEL)
        direct = await post(stack, model="gone")
        await gone.remote.close()
    assert answer.json()["model"] == "far"
    assert error_of(direct) == (502, "remote_failed")
    assert "cannot be reached" in direct.json()["error"]["message"]
    assert NOWHERE not in direct.text


async def test_a_remote_asked_by_name_has_targets_too():
    async with house(FakeRemote(fail)) as stack:
        routes = stack.service.router.routes
        lists = {"far": ("small",)}
        stack.service.router.routes = Routes({}, lists, REASONS, routes.remotes)
        answer = await post(stack)
    assert answer.headers["x-fallback-model"] == "small"
    assert answer.headers["x-fallback-reason"] == "remote"


# After the first token


async def cut(exchange: Exchange) -> None:
    await exchange.say(chunk("so far"))
    raise ConnectionError("the remote is gone")


async def stall(exchange: Exchange) -> None:
    await exchange.say(chunk("so far"))
    await exchange.gone()


AFTER = {
    "cut": cut,
    "stall": stall,
    "garbage": saying(chunk("so far"), "{nonsense", "[DONE]"),
    "early end": saying(chunk("so far")),
    "text after the end": saying(chunk("so far", reason="stop"), chunk("more"), "[DONE]"),
}


@pytest.mark.parametrize("kind", AFTER)
async def test_a_failure_after_the_first_token_is_an_error_event(kind):
    async with house(FakeRemote(AFTER[kind]), FakeRemote(), read_timeout=0.3) as stack:
        stack.kill(MODEL)
        lines = await lines_of(stack, model=MODEL)
        text = (await post(stack)).text
    assert any("so far" in line for line in lines)
    assert json.loads(lines[-1][6:])["error"]["code"] == "remote_failed"
    assert "[DONE]" not in "".join(lines)
    assert "remote_failed" in text


async def test_the_official_client_raises_on_it():
    async with (
        house(FakeRemote(cut)) as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model="far", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="far"):
            async for _ in stream:
                pass


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_closes_the_remotes_stream(stream):
    remote = FakeRemote(stall if stream else silent)
    async with house(remote) as stack:
        async with asking(stack, stream=stream) as task:
            exchange = await remote.asked()
            if stream:
                await task
        await exchange.gone()
        async with asyncio.timeout(5):
            await stack.admission.drained()
        assert far(stack).requests == {"aborted": 1}
        assert far(stack).breaker.opened == 0


async def test_a_model_that_dies_in_an_opened_stream_is_followed_by_a_remote():
    trio = Trio(api=ApiLimits(comment_every=0.05, stream_hold=0.0))
    trio.engine.manual = True
    async with house(FakeRemote(), trio=trio) as stack, asking(stack, model=MODEL) as task:
        stream = await stack.engine.submitted()
        answer = await task
        stack.engine.fail(stream, EngineDead("the loop raised"))
        lines = [line async for line in answer.aiter_lines() if line]
    at = lines.index(": fallback far dead")
    assert not any(line.startswith("data") for line in lines[:at])
    assert lines[-1] == "data: [DONE]"


async def test_a_reader_that_is_slow_holds_the_remote_back():
    over = asyncio.Event()

    async def flood(exchange: Exchange) -> None:
        for _ in range(20_000):
            await exchange.say(chunk("x" * 1000))
        over.set()

    remote = FakeRemote(flood)
    async with house(remote) as stack:
        generation = await stack.fallback.course(_spec("far")).open()
        assert await generation.first_events(10)
        # A flood that nothing holds back would be over long before.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await over.wait()
        assert 256 < len(generation._pending) < 1000
        generation.close()
        await remote.exchanges[0].gone()


def _spec(model: str):
    from server.gateway.spec import ChatPrompt, Forward, GenerationSpec

    forward = Forward("chat/completions", lambda: {"messages": HELLO})
    return GenerationSpec("id", model, (ChatPrompt(HELLO),), forward=forward)


# What is refused


@pytest.mark.parametrize(
    ("status", "error", "expected", "told"),
    [
        (400, {"message": f"no {KEY} here"}, (400, "invalid_request"), "no *** here"),
        (
            400,
            {"message": "too long", "code": "context_length_exceeded"},
            (400, "context_length_exceeded"),
            "too long",
        ),
        (413, {}, (400, "invalid_request"), "does not say why"),
        (401, {"message": f"bad {KEY}"}, (502, "remote_failed"), "does not accept the key"),
        (403, {"message": f"bad {KEY}"}, (502, "remote_failed"), "does not accept the key"),
        (404, {"message": "what?"}, (502, "remote_failed"), "does not have this model"),
        (429, {"message": "slow"}, (502, "remote_failed"), "limits this server"),
        (503, {"message": "later"}, (502, "remote_failed"), "status 503"),
        (204, {}, (502, "remote_failed"), "status 204"),
    ],
)
async def test_refusals_are_passed_on_as_far_as_they_are_the_callers(status, error, expected, told):
    async def behave(exchange: Exchange) -> None:
        if status == 204:
            await exchange.head(204)
        else:
            await exchange.answer(status, {"error": error}, retry_after="7")

    async with house(FakeRemote(behave)) as stack:
        answer = await post(stack)
        failures = far(stack).requests["failed"]
    assert error_of(answer) == expected
    assert told in answer.json()["error"]["message"]
    assert KEY not in answer.text
    if status in (429, 503):
        assert answer.headers["retry-after"] == "7"
    assert failures == (0 if status in (400, 413, 404) else 1)


async def test_a_key_appears_nowhere(caplog):
    caplog.set_level(logging.DEBUG)
    texts = []
    for behave in (fail, html, elsewhere, saying("{"), cut):
        async with house(FakeRemote(behave)) as stack:
            texts += [(await post(stack)).text, (await post(stack, stream=True)).text]
            texts += [stack.metrics.render()[0].decode(), repr(far(stack).limits)]
    server = "\n".join(
        str(vars(record))
        for record in caplog.records
        if record.name.startswith(("server", "onegpu", "httpx2"))
    )
    assert "far" in server
    assert KEY not in "\n".join([server, *texts])


async def test_no_proxy_and_no_cookie_comes_between(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def behave(exchange: Exchange) -> None:
        await exchange.head(set_cookie="who=first; Path=/")
        await exchange.say(chunk("hi", reason="stop"), "[DONE]")

    remote = FakeRemote(behave)
    async with house(remote) as stack:
        for _ in range(2):
            assert (await post(stack, stream=True)).status_code == 200
    assert "cookie" not in remote.exchanges[1].headers


async def test_where_a_name_leads_is_looked_at_before_anything_is_sent(monkeypatch):
    """A name server that says one thing at start and another one later changes nothing."""
    remote = FakeRemote()
    whole = address.is_forbidden
    async with house(remote) as stack:
        monkeypatch.setattr(
            address, "is_forbidden", lambda text: text.startswith("127.") or whole(text)
        )
        answer = await post(stack)
        assert error_of(answer) == (502, "remote_failed")
        assert "an address that no remote may have" in answer.text
        await far(stack).probe()
        assert far(stack).probes == {"failed": 1}
    assert not remote.exchanges


# Limits of whom it is asked for


async def test_tokens_are_charged_as_the_remote_counts_them():
    remote = FakeRemote(saying(chunk("hi", reason="stop"), usage(40, 80), "[DONE]"))
    trio = Trio(rate=RateLimits(requests_per_minute=9, tokens_per_minute=100))
    async with house(remote, trio=trio) as stack:
        await post(stack, stream=True, max_tokens=10)
        second = await post(stack, stream=True, max_tokens=10)
    assert error_of(second) == (429, "rate_limit_exceeded")
    assert len(remote.exchanges) == 1
    assert float(second.headers["retry-after"]) > 15, "what is over the limit is owed"
    assert far(stack).tokens == {"prompt": 40, "completion": 80}


async def test_a_remote_that_does_not_count_is_estimated():
    remote = FakeRemote(saying(chunk("x" * 400, reason="stop"), "[DONE]"))
    trio = Trio(rate=RateLimits(tokens_per_minute=1000))
    async with house(remote, trio=trio) as stack:
        answer = await post(stack, stream=True, max_tokens=10)
        again = await post(stack, stream=True, max_tokens=10)
    assert answer.status_code == 200
    left = int(again.headers["x-ratelimit-remaining-tokens"])
    assert 850 < left < 900


async def test_failures_cost_the_caller_nothing():
    trio = Trio(rate=RateLimits(requests_per_minute=1, burst=1, tokens_per_minute=5000))
    async with house(FakeRemote(fail), FakeRemote(), trio=trio) as stack:
        stack.kill(MODEL)
        assert (await post(stack, model=MODEL)).status_code == 200
        refused = await post(stack, model=MODEL)
    assert error_of(refused) == (429, "rate_limit_exceeded")


async def test_output_and_context_are_limited_for_remotes_too():
    remote = FakeRemote()
    async with house(remote, n_ctx=100, max_tokens=33) as stack:
        await post(stack)
        await post(stack, max_tokens=7)
        await post(stack, max_completion_tokens=8)
        long = [{"role": "user", "content": "x" * 500}]
        refused = await post(stack, messages=long)
        stack.kill(MODEL)
        other = await post(stack, model=MODEL, messages=long)
    bodies = [exchange.body for exchange in remote.exchanges]
    assert [body.get("max_tokens") for body in bodies] == [33, 7, None]
    assert bodies[2]["max_completion_tokens"] == 8
    assert error_of(refused) == (400, "context_length_exceeded")
    assert error_of(other) == (503, "engine_dead"), "too long for the target, so nobody answers"


async def test_requests_wait_in_line_for_a_connection():
    gate = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await exchange.say(chunk("one"))
        await gate.wait()
        await exchange.say(chunk(reason="stop"), "[DONE]")

    remote = FakeRemote(slowly)
    trio = Trio(api=ApiLimits(comment_every=0.02, stream_hold=0.05))
    async with house(remote, trio=trio, connections=1) as stack, asking(stack) as first:
        await first
        async with asking(stack) as second:
            lines = (await second).aiter_lines()
            assert (await anext(lines)).startswith(": queued 1/1")
            assert len(remote.exchanges) == 1
            gate.set()
            rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert len(remote.exchanges) == 2


async def test_the_clients_deadline_counts():
    async with house(FakeRemote(stall)) as stack:
        answer = await post(stack, headers={"x-request-deadline-ms": "200"})
        assert error_of(answer) == (504, "total_timeout")


# Whether it is worth asking


async def test_a_remote_that_fails_is_not_asked_until_it_is_time():
    remote = FakeRemote(fail)
    async with house(remote) as stack:
        for _ in range(2):
            assert error_of(await post(stack)) == (502, "remote_failed")
        answer = await post(stack)
        assert "is not asked now" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "30"
        assert len(remote.exchanges) == 2
        async with httpx.AsyncClient(base_url=stack.url) as client:
            assert (await client.get("/v1/models/far")).json()["state"] == "failed"
        assert 'onegpu_remote_up{remote="far"} 0.0' in _metrics(stack)
        stack.still.advance(30)
        await post(stack)
        assert len(remote.exchanges) == 3, "one try, which failed"
        stack.still.advance(59)
        await post(stack)
        assert len(remote.exchanges) == 3
        stack.still.advance(1)
        remote.behave = FakeRemote().behave
        assert (await post(stack)).status_code == 200
        assert (await post(stack)).status_code == 200
        text = _metrics(stack)
    assert 'onegpu_remote_up{remote="far"} 1.0' in text
    assert 'onegpu_remote_breaker_opened_total{remote="far"} 2.0' in text
    assert 'onegpu_remote_requests_total{outcome="failed",remote="far"} 3.0' in text


async def test_while_one_tries_the_others_do_not():
    remote = FakeRemote(fail)
    async with house(remote) as stack:
        for _ in range(2):
            await post(stack)
        stack.still.advance(30)
        remote.arrived.clear()
        remote.behave = silent
        async with asking(stack):
            await remote.asked()
            assert "is not asked now" in (await post(stack)).text
        async with asyncio.timeout(5):
            await stack.admission.drained()
        remote.behave = FakeRemote().behave
        assert (await post(stack)).status_code == 200, "the try was given up, so another may"


async def test_probes_find_out_for_themselves():
    remote = FakeRemote(fail)
    async with house(remote) as stack:
        watch = RemoteWatch(stack.service.router, stack.admission, stack.still)
        for number in range(4):
            await asyncio.gather(*await watch.look())
            await asyncio.gather(*await watch.look())
            assert len(remote.exchanges) == number + 1, "one every 30 s"
            assert far(stack).up == (number == 0)
            stack.still.advance(30)
        assert {exchange.path for exchange in remote.exchanges} == {"/v1/models"}
        assert remote.exchanges[0].headers["authorization"] == f"Bearer {KEY}"
        remote.behave = FakeRemote().behave
        await asyncio.gather(*await watch.look())
        assert far(stack).up, "whoever comes next may try"
        assert (await post(stack)).status_code == 200
        text = _metrics(stack)
    assert 'onegpu_remote_probes_total{outcome="failed",remote="far"} 4.0' in text
    assert 'onegpu_remote_probes_total{outcome="ok",remote="far"} 1.0' in text


async def test_a_look_that_raises_keeps_nobody_from_being_looked_at(monkeypatch, caplog):
    async with house(FakeRemote(), FakeRemote()) as stack:
        watch = RemoteWatch(stack.service.router, stack.admission, stack.still)
        first, second = watch.routed

        async def broken() -> None:
            raise ValueError("a fault of its own")

        monkeypatch.setattr(first, "probe", broken)
        await asyncio.gather(*await watch.look())
    assert second.probes == {"ok": 1}
    assert "a fault of its own" in caplog.text


async def test_a_probe_has_a_connection_of_its_own():
    remote = FakeRemote(stall)
    async with house(remote, connections=1) as stack, asking(stack) as task:
        await task
        remote.behave = FakeRemote().behave
        await far(stack).probe()
        assert far(stack).probes == {"ok": 1}


def _metrics(stack: Trio) -> str:
    watch = RemoteWatch(stack.service.router, stack.admission, stack.still)
    stack.remotes.__dict__.update(watch.__dict__)
    return stack.metrics.render()[0].decode()


# Ends


async def test_a_shutdown_ends_what_is_under_way_with_an_event():
    async with house(FakeRemote(stall)) as stack, asking(stack) as task:
        answer = await task
        lines = answer.aiter_lines()
        async for line in lines:
            if "so far" in line:
                break
        await far(stack).close()
        rest = [line async for line in lines if line]
    assert json.loads(rest[-1][6:])["error"]["code"] == "draining"


async def test_a_remote_that_nobody_leads_to_any_more_is_let_go_when_it_is_idle():
    remote = FakeRemote(stall)
    async with house(remote) as stack:
        watch = RemoteWatch(stack.service.router, stack.admission, stack.still)
        await asyncio.gather(*await watch.look())
        gone, lanes = far(stack), len(stack.admission._lanes)
        async with asking(stack) as task:
            await task
            stack.service.router.routes = Routes(reasons=REASONS)
            await asyncio.gather(*await watch.look())
            assert not gone._client.is_closed
        async with asyncio.timeout(5):
            await stack.admission.drained()
        await asyncio.gather(*await watch.look())
        assert gone._client.is_closed
        assert len(stack.admission._lanes) == lanes - 1
        assert error_of(await post(stack)) == (404, "model_not_found")
