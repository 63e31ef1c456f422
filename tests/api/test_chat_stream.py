"""Streaming chat through the official client, over a real server."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx
import openai
import pytest

from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio
HELLO: Any = [{"role": "user", "content": "hello"}]


def client_of(stack):
    return openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)


async def raw_events(stack, **fields):
    """The stream's lines as they are: data documents and comments."""
    body = {"model": MODEL, "messages": HELLO, "stream": True, **fields}
    async with httpx.AsyncClient(base_url=stack.url) as client:
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [block for block in answer.text.split("\n\n") if block]


async def test_official_client_streams_a_chat():
    async with serve(Stack()) as stack, client_of(stack) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, MODEL)
    }
    assert stack.admission.outstanding == 0


async def test_official_sync_client():
    def talk(url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model=MODEL, messages=HELLO)
            stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            return answer, list(stream)

    async with serve(Stack()) as stack:
        answer, chunks = await anyio.to_thread.run_sync(talk, stack.url)
    assert answer.choices[0].message.content == "Hello world!"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_chunks_come_in_the_order_of_the_contract():
    async with serve(Stack()) as stack:
        blocks = await raw_events(stack, stream_options={"include_usage": True})
    assert blocks[-1] == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
    role, *deltas, finish, usage = chunks
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert role["choices"][0]["finish_reason"] is None
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in deltas)
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert [chunk["usage"] for chunk in (role, *deltas, finish)] == [None] * (len(deltas) + 2)
