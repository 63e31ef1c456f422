"""Tools, structured output and reasoning with the demo model, judged by the official client's own helpers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.lib.streaming.chat import FunctionToolCallArgumentsDoneEvent
from pydantic import BaseModel, Field

from tests.e2e.live import LiveServer

pytestmark = pytest.mark.native

SLOT: Any = [{"role": "user", "content": "What is a slot?"}]
PARIS: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


class Verdict(BaseModel):
    """What a weak model can still fill in."""

    good: bool
    level: Literal["low", "middle", "high"]
    count: int = Field(ge=0, le=99)


class GetWeather(BaseModel):
    """Get the current weather for a city"""

    city: str = Field(pattern="^[A-Z][a-z]{1,12}$")
    unit: Literal["celsius", "fahrenheit"]


class GetTime(BaseModel):
    """Get the current time in a city"""

    city: str = Field(max_length=20)


WEATHER = openai.pydantic_function_tool(GetWeather, name="get_weather")
TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the current time in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, messages: Any = SLOT, **fields: Any):
    asked: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 100, "seed": 1}
    asked |= fields
    body = {"enable_thinking": False} | asked.pop("extra_body", {})
    return client.chat.completions.create(messages=messages, extra_body=body, **asked)


# Structured output


def test_the_parse_helper_gets_its_model(client):
    answer = client.chat.completions.parse(
        model="demo",
        messages=SLOT,
        response_format=Verdict,
        max_tokens=300,
        temperature=1.5,
        seed=7,
        n=4,
        extra_body={"thinking_token_budget": 16},
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Verdict)


def test_the_stream_helper_gets_its_model(client):
    with client.chat.completions.stream(
        model="demo",
        messages=SLOT,
        response_format=Verdict,
        temperature=1.5,
        seed=3,
        max_tokens=100,
        extra_body={"enable_thinking": False},
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Verdict)


def test_a_form_works_with_stop_log_probabilities_and_choices(client):
    schema = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 3}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "letters", "schema": schema, "strict": True},
    }
    answer = ask(client, response_format=form, n=3, logprobs=True, top_logprobs=3, temperature=1.0)
    for choice in answer.choices:
        assert len(json.loads(choice.message.content)) == 3
        told = choice.logprobs.content
        assert "".join(entry.token for entry in told) == choice.message.content
        # They are the model's own: what the grammar forbids is among the likeliest.
        assert any(entry.token not in {top.token for top in entry.top_logprobs} for entry in told)
    cut = ask(client, response_format=form, stop=[","])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content in ('["a"', '["b"')


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"guided_choice": ["yes", "no"]}, {"yes", "no"}),
        ({"guided_regex": "[ab]{2}!"}, {x + y + "!" for x in "ab" for y in "ab"}),
        ({"guided_grammar": 'start: "x" ("y" | "z")'}, {"xy", "xz"}),
        ({"guided_json": {"enum": [1, None]}}, {"1", "null"}),
        ({"grammar": 'root ::= "p" | "q"'}, {"p", "q"}),
    ],
)
def test_guided_answers(client, body, expected):
    chat = ask(client, extra_body=body)
    assert chat.choices[0].message.content in expected
    legacy = client.completions.create(
        model="demo", prompt="A slot is", max_tokens=20, extra_body=body
    )
    assert legacy.choices[0].text in expected
    assert legacy.choices[0].finish_reason == "stop"


def test_json_object(client):
    answer = ask(
        client,
        response_format={"type": "json_object"},
        temperature=1.0,
        max_tokens=300,
    )
    content = answer.choices[0].message.content
    assert content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


def test_what_cannot_be_enforced_is_refused(client):
    schema = {"type": "array", "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "set", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        ask(client, response_format=form)
    assert str(caught.value.param).startswith("response_format.json_schema.schema")


# Tools


def test_a_strict_tool_is_parsed_by_the_helper(client):
    answer = client.chat.completions.parse(
        model="demo",
        messages=PARIS,
        tools=[WEATHER, openai.pydantic_function_tool(GetTime, name="get_time")],
        temperature=0,
        max_tokens=100,
        extra_body={"enable_thinking": False},
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    parsed: Any = call.function.parsed_arguments
    assert isinstance(parsed, GetWeather | GetTime)
    assert parsed.city == "Paris"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("question", [SLOT, PARIS])
def test_required_calls_validate_at_any_temperature(client, question, seed):
    answer = ask(
        client,
        question,
        tools=[WEATHER, TIME],
        tool_choice="required",
        temperature=1.5,
        seed=seed,
        parallel_tool_calls=False,
        max_tokens=200,
    )
    choice = answer.choices[0]
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"  # the schemas' strings are bounded
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        GetWeather.model_validate(arguments)
    else:
        assert len(arguments["city"]) <= 20


def test_a_named_tool_is_the_one_that_is_called(client):
    with client.chat.completions.stream(
        model="demo",
        messages=PARIS,
        tools=[WEATHER, TIME],
        temperature=0,
        max_tokens=100,
        tool_choice={"type": "function", "function": {"name": "get_time"}},
        extra_body={"enable_thinking": False},
    ) as stream:
        done = [event for event in stream if isinstance(event, FunctionToolCallArgumentsDoneEvent)]
        final = stream.get_final_completion()
    assert [event.name for event in done] == ["get_time"]
    assert final.choices[0].finish_reason == "tool_calls"


def test_tool_choice_none_calls_nothing(client):
    answer = ask(client, PARIS, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_result_goes_back_to_the_model(client):
    first = ask(client, PARIS, tools=[TIME, WEATHER])
    message = first.choices[0].message
    (call,) = message.tool_calls
    result = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": '{"temperature": 21, "condition": "sunny"}',
    }
    second = ask(client, [*PARIS, message.to_dict(), result], tools=[TIME, WEATHER])
    assert "21" in second.choices[0].message.content
    assert second.choices[0].finish_reason == "stop"


# Reasoning


def test_thoughts_are_apart_and_counted(client):
    question = [{"role": "user", "content": "Think first: What is a slot?"}]
    answer = ask(client, question, extra_body={"enable_thinking": None})
    message = answer.choices[0].message
    assert message.model_extra["reasoning_content"]
    assert "think" not in message.content
    thoughts = answer.usage.completion_tokens_details.reasoning_tokens
    assert 0 < thoughts < answer.usage.completion_tokens
    stream = ask(client, question, stream=True, extra_body={"enable_thinking": None})
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    streamed = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
    assert streamed == message.model_extra["reasoning_content"]


@pytest.mark.parametrize("budget", [1, 3])
def test_a_budget_closes_the_block_and_the_answer_follows(client, budget):
    question = [{"role": "user", "content": "Think first: What is a slot?"}]
    answer = ask(
        client, question, extra_body={"enable_thinking": None, "thinking_token_budget": budget}
    )
    plain = ask(client, question, extra_body={"enable_thinking": None})
    message = answer.choices[0].message
    whole = plain.choices[0].message.model_extra["reasoning_content"]
    assert whole.startswith(message.model_extra.get("reasoning_content", ""))
    assert answer.usage.completion_tokens_details.reasoning_tokens < (
        plain.usage.completion_tokens_details.reasoning_tokens
    )
    assert message.content
    assert answer.usage.completion_tokens_details.reasoning_tokens <= budget + 4


def test_stop_strings_end_nothing_while_it_thinks(client):
    question = [{"role": "user", "content": "Think first: What is a slot?"}]
    plain = ask(client, question, extra_body={"enable_thinking": None})
    word = plain.choices[0].message.model_extra["reasoning_content"].split()[1]
    stopped = ask(client, question, stop=[f" {word}"], extra_body={"enable_thinking": None})
    assert (
        stopped.choices[0].message.model_extra["reasoning_content"]
        == plain.choices[0].message.model_extra["reasoning_content"]
    )
