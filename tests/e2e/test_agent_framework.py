"""An agent framework's own loop against the demo model: pydantic-ai calls, runs tools, and calls again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.e2e.live import LiveServer

pytestmark = [pytest.mark.native, pytest.mark.anyio]
QUESTION = "The owner of lamp and the height of Babel?"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def model(server: LiveServer) -> AsyncIterator[OpenAIChatModel]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield OpenAIChatModel("demo", provider=OpenAIProvider(openai_client=client))


class Tools:
    """Two tools, and what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def find_owner(self, item: str) -> dict[str, int]:
        """Find the owner for an item."""
        self.asked.append(("find_owner", item))
        return {"result": 37}

    def get_height(self, tower: str) -> dict[str, int]:
        """Get the height of a tower."""
        self.asked.append(("get_height", tower))
        return {"result": 58}


def agent_of(model, tools, **kwargs):
    settings = ModelSettings(temperature=0, max_tokens=150)
    return Agent(
        model, tools=[tools.find_owner, tools.get_height], model_settings=settings, **kwargs
    )


def calls_in(messages):
    responses = [message for message in messages if isinstance(message, ModelResponse)]
    return [
        [part for part in response.parts if isinstance(part, ToolCallPart)]
        for response in responses
    ]


async def test_a_task_for_two_tools(model):
    tools = Tools()
    done = await agent_of(model, tools).run(QUESTION)
    assert sorted(tools.asked) == [("find_owner", "lamp"), ("get_height", "Babel")]
    rounds = calls_in(done.all_messages())
    assert len(rounds[-1]) == 0  # the last answer is text
    assert "Babel" in done.output
    assert "37" in done.output or "58" in done.output


async def test_the_same_task_streamed(model):
    tools = Tools()
    async with agent_of(model, tools).run_stream(QUESTION) as running:
        text = await running.get_output()
    assert sorted(tools.asked) == [("find_owner", "lamp"), ("get_height", "Babel")]
    assert "Babel" in text


class Mark(BaseModel):
    """A mark."""

    good: bool
    points: int = Field(ge=0, le=9)


async def test_output_as_a_tool_that_has_to_be_called(model):
    """The framework asks with `tool_choice: required`, and takes the arguments as the answer."""
    settings = ModelSettings(temperature=0, max_tokens=300)
    bounded = {"chat_template_kwargs": {"enable_thinking": False}}
    done = await Agent(
        model, output_type=Mark, model_settings=ModelSettings(**settings, extra_body=bounded)
    ).run("Is a slot good?")
    assert isinstance(done.output, Mark)


async def test_output_in_the_servers_own_form(model):
    """The framework asks with `response_format: json_schema`."""
    settings = ModelSettings(temperature=0, max_tokens=300, extra_body={"enable_thinking": False})
    done = await Agent(model, output_type=NativeOutput(Mark), model_settings=settings).run(
        "Is a slot good?"
    )
    assert isinstance(done.output, Mark)
