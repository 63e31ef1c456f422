"""Tool calls and reasoning as the official client reads them, over a real server and scripted answers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ContentDeltaEvent, FunctionToolCallArgumentsDoneEvent

from server.core.events import FinishReason
from tests.fakes import FakeEngine, Script
from tests.serving import MODEL, Stack, serve

pytestmark = pytest.mark.anyio
ASK: Any = [{"role": "user", "content": "Weather in Paris and Rome?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALLS = (
    '<think>\nTwo cities.\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
    '</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "R\u00f3ma"}}\n</tool_call>'
)


def pieces(text, size):
    return tuple(text[at : at + size] for at in range(0, len(text), size))


def stack_of(*texts, reason=FinishReason.STOP, **api):
    return Stack(engine=FakeEngine(script=lambda _: Script(texts, reason))).with_api(**api)


def client_of(stack):
    return openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)


async def whole(stack, **fields):
    async with serve(stack), client_of(stack) as client:
        return await client.chat.completions.create(
            model=MODEL, messages=ASK, **{"tools": [WEATHER], **fields}
        )


async def chunks_of(stack, **fields):
    async with serve(stack), client_of(stack) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=ASK, stream=True, **{"tools": [WEATHER], **fields}
        )
        return [chunk async for chunk in stream]


async def test_a_whole_answer_has_reasoning_content_and_calls():
    answer = await whole(stack_of(*pieces(CALLS, 3)))
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert choice.message.model_extra["reasoning_content"] == "Two cities."
    found = [
        (call.function.name, json.loads(call.function.arguments))
        for call in choice.message.tool_calls
    ]
    assert found == [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Róma"})]
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == 2


async def test_an_answer_of_calls_alone_has_no_content():
    answer = await whole(stack_of(CALLS.partition("I look.\n")[2]))
    assert answer.choices[0].message.content is None


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_streamed_deltas_are_those_of_the_contract(size):
    chunks = await chunks_of(stack_of(*pieces(CALLS, size)))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert deltas[-1].model_dump(exclude_none=True) == {}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    thought = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
    assert thought == "Two cities."
    assert "".join(delta.content or "" for delta in deltas) == "I look."
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    opened = [call for call in calls if call.id]
    assert [
        (call.index, call.type, call.function.name, call.function.arguments) for call in opened
    ] == [
        (0, "function", "get_weather", ""),
        (1, "function", "get_weather", ""),
    ]
    later = [call for call in calls if not call.id]
    assert all(call.function.name is None and call.type is None for call in later)
    for index, city in enumerate(("Paris", "Róma")):
        text = "".join(call.function.arguments for call in later if call.index == index)
        assert json.loads(text) == {"city": city}


async def test_the_clients_stream_helper_follows_calls():
    stack = stack_of(*pieces(CALLS, 5))
    done, content = [], []
    async with (
        serve(stack),
        client_of(stack) as client,
        client.chat.completions.stream(model=MODEL, messages=ASK, tools=[WEATHER]) as stream,
    ):
        async for event in stream:
            if isinstance(event, FunctionToolCallArgumentsDoneEvent):
                done.append((event.name, json.loads(event.arguments)))
            elif isinstance(event, ContentDeltaEvent):
                content.append(event.delta)
        final = await stream.get_final_completion()
    assert done == [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Róma"})]
    assert "".join(content) == "I look."
    assert len(final.choices[0].message.tool_calls) == 2


async def test_length_wins_over_tool_calls():
    cut = CALLS[: CALLS.index("Paris")]
    answer = await whole(stack_of(cut, reason=FinishReason.LENGTH))
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "'


async def test_without_tools_what_looks_like_a_call_is_content():
    answer = await whole(stack_of(CALLS), tools=openai.omit)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls is None
    assert "<tool_call>" in answer.choices[0].message.content


async def test_reasoning_tokens_are_counted():
    answer = await whole(stack_of(CALLS))
    tokens = answer.usage.completion_tokens_details.reasoning_tokens
    assert tokens == len("<>\nTwo cities.\n")  # two markers, a byte each for the rest


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("reasoning_content", {"reasoning_content"}),
        ("reasoning", {"reasoning"}),
        ("both", {"reasoning_content", "reasoning"}),
    ],
)
async def test_thoughts_go_to_the_configured_field(field, names):
    answer = await whole(stack_of(CALLS, reasoning_field=field))
    assert set(answer.choices[0].message.model_extra) >= names
    assert all(answer.choices[0].message.model_extra[name] == "Two cities." for name in names)
    chunks = await chunks_of(stack_of(CALLS, reasoning_field=field))
    found = {name for chunk in chunks for name in chunk.choices[0].delta.model_extra or ()}
    assert found == names


async def test_choices_are_taken_apart_apart():
    script = iter([Script((CALLS,)), Script(("Plain.",))])
    answer = await whole(Stack(engine=FakeEngine(script=lambda _: next(script))), n=2)
    assert [choice.finish_reason for choice in answer.choices] == ["tool_calls", "stop"]
    assert answer.choices[1].message.content == "Plain."


async def test_a_call_that_a_stop_string_cuts_is_none_to_be_run():
    cut = Script((CALLS[: CALLS.index("Paris")],), stop_match="Paris")

    def stack():
        return Stack(engine=FakeEngine(script=lambda _: cut))

    answer = await whole(stack())
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "'
    chunks = await chunks_of(stack())
    assert chunks[-1].choices[0].finish_reason == "stop"
