"""Every bad input is a clear error of one shape, and leaves nothing behind."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.core.errors import EngineDead, GenerationFailed, QueueTimeout
from server.engine.interface import EngineState
from tests.fakes import FakeEngine, Script
from tests.serving import MODEL, Stack

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = {"role": "user", "content": "hi"}
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"type": "function", "function": {"name": "f"}}
OTHER_CALL = {"type": "function", "function": {"name": "g"}}

BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [PNG]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
        "messages[1].tool_calls[0]",
    ),
    ({"model": 3}, "model"),
    ({"n": 0}, "n"),
    ({"n": 5}, "n"),
    ({"n": 10**30}, "n"),
    ({"n": "2"}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "10"}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"min_p": float("-inf")}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"mirostat": 3}, "mirostat"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**70}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"logit_bias": {"999": 1}}, "logit_bias"),
    ({"logit_bias": {str(token): 0 for token in range(1025)}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": "x"}}, "logit_bias.5"),
    ({"logit_bias": []}, "logit_bias"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"guided_regex": "a", "tools": [CALL]}, "guided_regex"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"response_format": "text"}, "response_format"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [CALL], "tool_choice": OTHER_CALL}, "tool_choice.function.name"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [3]}, "tools[0]"),
    ({"tools": [CALL, CALL]}, "tools[1].function.name"),
    ({"tools": [CALL] * 10_000}, "tools"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL]}, USER]},
        "messages[0].tool_calls[0].id",
    ),
    ({"functions": []}, "functions"),
    ({"grammar": "root ::= x"}, "grammar"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"enable_thinking": "no"}, "enable_thinking"),
]

BAD_TEXT: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt[1]"),
    ({"prompt": ["a", 3]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [1, True]}, "prompt[1]"),
    ({"prompt": [[1], [1.5]]}, "prompt[1][0]"),
    ({"prompt": [265]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**80]}, "prompt"),
    ({"prompt": ["x"] * 13}, "prompt"),
    ({"prompt": "x", "suffix": "y"}, "suffix"),
    ({"prompt": "x", "best_of": 2}, "best_of"),
    ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ({"prompt": "x", "logprobs": True}, "logprobs"),
    ({"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
]


@pytest.fixture
def stack():
    made = Stack()
    yield made
    assert made.admission.outstanding == 0
    assert not made.engine.running
    assert not made.engine.waiting
    made.service.shutdown()


def http(stack):
    return httpx.AsyncClient(transport=httpx.ASGITransport(stack.app), base_url="http://test")


def error_of(answer, status=400, code="invalid_request"):
    """The error's inside, after checking its shape."""
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["code"] == code
    assert document["error"]["message"]
    assert answer.headers["x-request-id"]
    return document["error"]


async def post(stack, path, fields, **options):
    body = json.dumps(fields).encode()
    headers = {"content-type": "application/json"}
    async with http(stack) as client:
        return await client.post(path, content=body, headers=headers, **options)


BAD_STREAM = [(fields, param) for fields, param in BAD_CHAT if param != "stream_options"]
"""Stream options are only wrong without a stream."""


@pytest.mark.parametrize(
    ("fields", "param", "stream"),
    [(*bad, False) for bad in BAD_CHAT] + [(*bad, True) for bad in BAD_STREAM],
)
async def test_bad_chat_fields_are_named(stack, fields, param, stream):
    body = {"model": MODEL, "messages": [USER], **({"stream": True} if stream else {}), **fields}
    answer = await post(stack, CHAT, body)
    assert error_of(answer)["param"] == param
    assert not stack.engine.requests


@pytest.mark.parametrize(("fields", "param"), BAD_TEXT)
async def test_bad_completion_fields_are_named(stack, fields, param):
    answer = await post(stack, TEXT, {"model": MODEL, **fields})
    assert error_of(answer)["param"] == param
    assert not stack.engine.requests


BAD_BODIES = [
    (b"", "empty"),
    (b"  \n", "empty"),
    (b"{", "not valid JSON"),
    (b'{"messages": [}', "not valid JSON"),
    (b"\xff\xfe{}", "not valid UTF-8"),
    (b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}', "not valid UTF-8"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
    (b"[" * 5000, "not valid JSON"),
    (b"[]", "valid"),
    (b"null", "valid"),
    (b'"text"', "valid"),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize", "/apply-template"])
async def test_bad_bodies_are_explained(stack, path, body, message):
    async with http(stack) as client:
        answer = await client.post(path, content=body)
    assert message in error_of(answer)["message"]


async def test_the_content_type_must_be_json(stack):
    async with http(stack) as client:
        answer = await client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert "application/json" in error_of(answer)["message"]


async def test_unknown_model_path_and_method(stack):
    body = {"model": "gpt-9", "messages": [USER]}
    told = error_of(await post(stack, CHAT, body), 404, "model_not_found")
    assert told["param"] == "model"
    assert MODEL in told["message"]
    async with http(stack) as client:
        error_of(await client.get("/v1/models/gpt-9"), 404, "model_not_found")
        error_of(await client.get("/v1/nothing"), 404, "not_found")
        wrong = await client.get(CHAT)
        error_of(wrong, 405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
        (CHAT, {"messages": [USER], "max_tokens": 4090}, "messages"),
        (TEXT, {"prompt": "x" * 4096}, "prompt"),
        (TEXT, {"prompt": "x" * 96, "max_tokens": 4001}, "prompt"),
    ],
)
async def test_too_long_names_both_counts(stack, path, fields, param):
    told = error_of(await post(stack, path, fields), 400, "context_length_exceeded")
    assert told["param"] == param
    assert "4096" in told["message"]
    assert "in the prompt" in told["message"]


async def test_a_prompt_that_just_fits_runs(stack):
    assert (await post(stack, TEXT, {"prompt": "x" * 4095})).status_code == 200
    assert stack.engine.requests[0].max_tokens == 1
    assert (await post(stack, TEXT, {"prompt": "x" * 96, "max_tokens": 4000})).status_code == 200


async def test_bodies_over_the_limit_are_413_announced_or_not():
    stack = Stack().with_api(max_body=1000)

    async def pieces():
        for _ in range(30):
            yield b"x" * 100

    async with http(stack) as client:
        announced = await client.post(CHAT, content=b"x" * 1001)
        chunked = await client.post(CHAT, content=pieces())
        fits = await client.post(CHAT, content=b"x" * 1000)
    error_of(announced, 413, "request_too_large")
    error_of(chunked, 413, "request_too_large")
    assert fits.status_code == 400


async def test_strict_refuses_unknown_fields_else_they_are_named(stack):
    body = {
        "messages": [USER],
        "wibble": 1,
        "näh\r\nx: y": 2,
        "absent": None,
        "user": "u",
        "store": True,
        "metadata": {},
    }
    answer = await post(stack, CHAT, body)
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "n%C3%A4h%0D%0Ax%3A%20y, store, wibble"
    strict = stack.with_api(strict=True)
    assert error_of(await post(strict, CHAT, body))["param"] == "wibble"
    assert error_of(await post(strict, "/tokenize", {"content": "x", "y": 1}))["param"] == "y"
    strict.service.shutdown()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (QueueTimeout("waited", retry_after=7.2), 503, None),
        (GenerationFailed("the sampler broke"), 500, "false"),
        (EngineDead("the loop raised"), 503, None),
    ],
)
async def test_failures_before_the_first_token_keep_their_status(stream, error, status, retry):
    stack = Stack(engine=FakeEngine(script=lambda _: Script(texts=(), error=error)))
    answer = await post(stack, CHAT, {"messages": [USER], "stream": stream})
    told = error_of(answer, status, error.code)
    assert told["message"] == error.message
    advice = {"queue_timeout": "8", "engine_dead": "10"}
    assert answer.headers.get("retry-after") == advice.get(error.code)
    # The fake engine starts a sequence before it fails it: work was done.
    assert answer.headers["x-should-retry"] == "false"
    assert stack.admission.outstanding == 0


@pytest.mark.parametrize(
    ("state", "code"), [(EngineState.LOADING, "model_loading"), (EngineState.DEAD, "engine_dead")]
)
async def test_without_a_model_every_endpoint_says_so(state, code):
    stack = Stack(engine=FakeEngine(state=state, dead_reason="bad file"))
    answers = [
        await post(stack, CHAT, {"messages": [USER]}),
        await post(stack, TEXT, {"prompt": "x"}),
        await post(stack, "/tokenize", {"content": "x"}),
        await post(stack, "/apply-template", {"messages": [USER]}),
    ]
    for answer in answers:
        error_of(answer, 503, code)
        assert answer.headers["retry-after"]
    if state is EngineState.LOADING:
        assert answers[0].headers["retry-after"] == "3"
    error_of(await post(stack, CHAT, {"model": "x", "messages": [USER]}), 404, "model_not_found")


async def test_draining_and_a_full_line_are_503_with_advice(stack):
    stack.engine.manual = True
    ticket = stack.service.router.default.host.lane.admit(12)
    answer = await post(stack, CHAT, {"messages": [USER]})
    assert "8 of 8" in error_of(answer, 503, "queue_full")["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert "x-should-retry" not in answer.headers
    stack.admission.drain()
    answer = await post(stack, CHAT, {"messages": [USER]})
    error_of(answer, 503, "draining")
    assert answer.headers["retry-after"]
    ticket.release()


async def test_a_bug_says_nothing_about_its_insides(stack, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(stack.service, "_check", broken)
    answer = await post(stack, CHAT, {"messages": [USER]})
    told = error_of(answer, 500, "internal_error")
    assert "secret" not in told["message"]
    assert "secret detail" in caplog.text


async def test_a_template_that_refuses_is_a_400(stack):
    from server.chat.template import ChatTemplate

    source = "{{ raise_exception('no system messages please') }}"
    tokenizer = stack.engine.tokenizer
    stack.service.router.default.prompter._bound = tokenizer, ChatTemplate(source, tokenizer)
    told = error_of(await post(stack, CHAT, {"messages": [USER]}))
    assert "no system messages please" in told["message"]
    assert told["param"] == "messages"
