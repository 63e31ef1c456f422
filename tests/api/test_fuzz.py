"""Whatever a body says, the answer is an answer or an error of the one shape, and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.body import parse_model
from server.api.schemas.chat import ChatFields, ChatRequest
from server.api.schemas.completions import CompletionRequest
from server.core.errors import InvalidRequest
from tests.serving import Stack

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from(["", "x", "auto", "<|im_end|>", "user", "text"]),
)
KEYS = [
    "role",
    "content",
    "type",
    "text",
    "5",
    "name",
    "id",
    "function",
    "parameters",
    "properties",
    "strict",
    "schema",
    "json_schema",
    "tool_calls",
    "tool_call_id",
    "arguments",
    "refusal",
    "index",
]
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    ),
    max_leaves=6,
)
good = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}


def near(form):
    """Objects of some form, one part of which may be anything else, or missing."""
    whole = st.fixed_dictionaries(form)
    changed = st.tuples(whole, st.sampled_from(sorted(form)), values)
    return st.one_of(
        whole,
        changed.map(lambda drawn: {**drawn[0], drawn[1]: drawn[2]}),
        changed.map(lambda drawn: {key: drawn[0][key] for key in drawn[0] if key != drawn[1]}),
    )


names = st.sampled_from(["f", "g", "", "a b"])
schemas = near({"type": st.sampled_from(["object", "array", "null"]), "properties": values})
functions = near({"name": names, "parameters": schemas, "arguments": values})
calls = near(
    {"id": st.sampled_from(["1", "2"]), "type": st.just("function"), "function": functions}
)
messages = near(
    {
        "role": st.sampled_from(["user", "assistant", "tool", "system", "function"]),
        "content": st.just("x"),
        "tool_calls": st.lists(calls, max_size=3),
        "tool_call_id": st.sampled_from(["1", "2"]),
    }
)
tools = near({"type": st.just("function"), "function": functions})
SHAPED = {
    "messages": st.lists(messages, max_size=4),
    "tools": st.lists(tools, max_size=3),
    "tool_choice": st.sampled_from(["none", "auto", "required"]) | tools,
    "parallel_tool_calls": st.booleans(),
    "response_format": near(
        {
            "type": st.sampled_from(["text", "json_object", "json_schema"]),
            "json_schema": near({"name": names, "schema": schemas, "strict": st.booleans()}),
            "schema": schemas,
        }
    ),
    "guided_json": schemas | schemas.map(json.dumps),
    "guided_choice": st.lists(st.text(max_size=3), max_size=3),
    "guided_regex": st.text(max_size=8),
    "guided_grammar": st.text(max_size=8).map(lambda text: f"start: {text}"),
    "grammar": st.text(max_size=8).map(lambda text: f"root ::= {text}"),
    "reasoning_effort": st.sampled_from(["none", "high", "max"]),
    "thinking_token_budget": st.integers(0, 3),
}


def bodies(model):
    known = [field.alias or name for name, field in model.model_fields.items()]
    shaped = [name for name in SHAPED if name in known]
    pairs = (st.sampled_from(shaped) | st.sampled_from([*sorted(known), "other"])).flatmap(
        lambda name: st.tuples(st.just(name), SHAPED.get(name, values) | values)
    )
    drawn = st.lists(pairs, max_size=4).map(dict)
    return st.tuples(st.booleans(), drawn).map(
        lambda both: {**(good if both[0] else {}), **both[1]}
    )


async def check(path, body, strict=False):
    stack = Stack()
    transport = httpx.ASGITransport(stack.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        headers = {"x-onegpu-strict": "true"} if strict else {}
        answer = await client.post(path, content=json.dumps(body).encode(), headers=headers)
    stack.service.shutdown()
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert stack.admission.outstanding == 0
    assert not stack.engine.running


@settings(max_examples=150)
@given(bodies(ChatRequest), st.booleans())
def test_chat(body, strict):
    asyncio.run(check("/v1/chat/completions", body, strict))


@settings(max_examples=150)
@given(bodies(CompletionRequest), st.booleans())
def test_completions(body, strict):
    asyncio.run(check("/v1/completions", body, strict))


@settings(max_examples=50)
@given(bodies(ChatFields))
def test_apply_template(body):
    asyncio.run(check("/apply-template", body))


@settings(max_examples=300)
@given(
    st.fixed_dictionaries({"messages": SHAPED["messages"]})
    | st.fixed_dictionaries({"tools": SHAPED["tools"], "tool_choice": SHAPED["tool_choice"]})
)
def test_messages_and_tools_are_read_or_refused(body):
    with contextlib.suppress(InvalidRequest):
        request = parse_model(json.dumps({**good, **body}).encode(), ChatRequest)
        list(request.unchecked())
        assert isinstance(request.leftover(strict=False), list)
        request.choice()
        shown = request.prompt()
        assert len(shown.messages) == len(request.messages)
