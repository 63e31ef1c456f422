"""Whatever a body says, the answer is an answer or an error of the one shape, and nothing leaks."""

from __future__ import annotations

import asyncio
import json

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.schemas.chat import ChatRequest
from server.api.schemas.completions import CompletionRequest
from tests.serving import Stack

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from(["", "x", "auto", "<|im_end|>", "user", "text"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "5", "name"]), inner, max_size=3
        ),
    ),
    max_leaves=6,
)
good = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}


def bodies(model):
    names = st.sampled_from([*sorted(model.model_fields), "other"])
    return st.tuples(st.booleans(), st.dictionaries(names, values, max_size=4)).map(
        lambda drawn: {**(good if drawn[0] else {}), **drawn[1]}
    )


async def check(path, body):
    stack = Stack()
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(path, content=json.dumps(body).encode())
    stack.service.shutdown()
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert stack.admission.outstanding == 0
    assert not stack.engine.running


@settings(max_examples=150)
@given(bodies(ChatRequest))
def test_chat(body):
    asyncio.run(check("/v1/chat/completions", body))


@settings(max_examples=150)
@given(bodies(CompletionRequest))
def test_completions(body):
    asyncio.run(check("/v1/completions", body))
