"""Tokens, templates, facts, health, metrics, the access log."""

from __future__ import annotations

import logging

import httpx
import openai
import pytest

from server.engine.interface import EngineState
from server.gateway.host import HostState
from tests.api.asking import get, post
from tests.fakes import CHAT_TEMPLATE, FakeEngine
from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio


@pytest.fixture
def stack():
    made = Stack()
    yield made
    made.service.shutdown()


async def test_tokenize_and_back(stack):
    text = "<|im_start|>é"
    tokens = (await post(stack, "/tokenize", {"content": text})).json()["tokens"]
    assert tokens == [257, 195, 169]
    assert (await post(stack, "/detokenize", {"tokens": tokens})).json() == {"content": text}
    plain = await post(stack, "/tokenize", {"content": text, "parse_special": False})
    assert plain.json()["tokens"] == list(text.encode())
    pieces = await post(stack, "/tokenize", {"content": text, "with_pieces": True})
    assert pieces.json()["tokens"][:2] == [
        {"id": 257, "piece": "<|im_start|>"},
        {"id": 195, "piece": [195]},
    ]


@pytest.mark.parametrize("tokens", [[999], [-1], ["a"], [1.5], 3, None])
async def test_detokenize_refuses_what_are_no_tokens(stack, tokens):
    answer = await post(stack, "/detokenize", {"tokens": tokens})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tokens")


async def test_apply_template(stack):
    body = {"messages": [{"role": "user", "content": "<|im_end|>"}], "enable_thinking": False}
    prompt = (await post(stack, "/apply-template", body)).json()["prompt"]
    assert prompt == (
        "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    # As a chat completion would have it: efforts are told in the template's own words.
    effort = {"messages": body["messages"], "reasoning_effort": "none"}
    assert (await post(stack, "/apply-template", effort)).json()["prompt"] == prompt
    strict = {**body, "chat_template_kwargs": {"colour": "red"}}
    refused = await post(stack, "/apply-template", strict, **{"x-onegpu-strict": "true"})
    assert refused.json()["error"]["param"] == "chat_template_kwargs.colour"


async def test_models(stack):
    listed = (await get(stack, "/v1/models")).json()
    assert [card["id"] for card in listed["data"]] == [MODEL, "alias"]
    card = (await get(stack, f"/v1/models/{MODEL}")).json()
    assert card["object"] == "model"
    assert card["context_window"] == 4096
    assert card["max_tokens"] == 64
    assert card["meta"]["n_ctx_train"] == 32768
    stack.engine.state = EngineState.LOADING
    assert (await get(stack, "/v1/models")).json()["data"][0]["id"] == MODEL


async def test_the_official_client_lists_models():
    async with (
        serve(Stack()) as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == [MODEL, "alias"]
        assert (await client.models.retrieve("alias")).id == "alias"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.models.retrieve("nobody")


async def test_props_and_slots(stack):
    props = (await get(stack, "/props")).json()
    assert props["chat_template"] == CHAT_TEMPLATE
    assert props["total_slots"] == 4
    assert props["default_generation_settings"] == {"n_ctx": 4096, "max_tokens": 64}
    slots = (await get(stack, "/slots")).json()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert slots[0]["running"] is False


async def test_health_endpoints():
    stack = Stack(engine=FakeEngine(state=EngineState.LOADING, progress=0.4))
    host = stack.hosts.hosts[0]
    host.state, host.loads = HostState.LOADING, 0
    assert (await get(stack, "/health/live")).status_code == 200
    ready = await get(stack, "/health/ready")
    assert (ready.status_code, ready.json()["load_progress"]) == (503, 0.4)
    assert (await get(stack, "/health")).json()["status"] == "loading"
    stack.engine.state, host.state, host.loads = EngineState.READY, HostState.READY, 1
    assert (await get(stack, "/health/ready")).json()["status"] == "ok"
    stack.engine.has_work = True
    assert (await get(stack, "/health/live")).json()["status"] == "stalled"
    assert (await get(stack, "/health")).status_code == 503
    stack.engine.state = EngineState.DEAD
    assert (await get(stack, "/health/live")).status_code == 503


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_load_balancers_may_ask_for_the_head_alone(path):
    async with serve(Stack()) as stack, httpx.AsyncClient(base_url=stack.url) as client:
        whole, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


async def test_metrics_count_by_route_and_code(stack):
    await post(stack, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    await post(stack, "/v1/chat/completions", {"messages": []})
    await get(stack, "/v1/models/whatever")
    await get(stack, "/some/path")
    answer = await get(stack, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'onegpu_requests_total{endpoint="/v1/chat/completions",status="200"} 1.0',
        'onegpu_requests_total{endpoint="/v1/chat/completions",status="400"} 1.0',
        'onegpu_requests_total{endpoint="/v1/models/{model:path}",status="404"} 1.0',
        'onegpu_requests_total{endpoint="unmatched",status="404"} 1.0',
        'onegpu_errors_total{code="invalid_request"} 1.0',
        'onegpu_errors_total{code="model_not_found"} 1.0',
        'onegpu_steps_total{model="fake-model"} 7.0',
        'onegpu_prompt_rows_total{model="fake-model"} 3.0',
        'onegpu_slots{model="fake-model"} 4.0',
        'onegpu_requests_waiting{class="interactive",model="fake-model"} 0.0',
        'onegpu_admission_total{outcome="admitted"} 1.0',
    ):
        assert line in answer.text.splitlines(), line


async def test_the_access_log_has_numbers_and_no_text(stack, caplog):
    caplog.set_level(logging.DEBUG)
    secret = {"role": "user", "content": "my secret"}
    headers = {"x-request-id": "abc", "authorization": "Bearer key-1"}
    await post(stack, "/v1/chat/completions?token=key-2", {"messages": [secret]}, **headers)
    await get(stack, "/health/live")
    lines = [record for record in caplog.records if record.name == "onegpu.access"]
    assert lines[0].getMessage() == "POST /v1/chat/completions 200"
    assert vars(lines[0])["request_id"] == "abc"
    facts = vars(lines[0])["facts"]
    assert facts["completion_tokens"] == 5
    assert facts["first_token_ms"] >= 0
    assert lines[1].levelno == logging.DEBUG
    for record in caplog.records:
        if record.name.startswith(("onegpu", "server")):
            told = f"{record.getMessage()} {vars(record).get('facts')}"
            assert not any(word in told for word in ("my secret", "key-1", "key-2"))
