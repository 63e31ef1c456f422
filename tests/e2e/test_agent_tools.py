"""An agent's own tools: offered and called without the client's knowing, unless it brings others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.live import DEMO, LiveServer

pytestmark = pytest.mark.native
ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


def tool(name: str, description: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    tools = [tool("get_weather", "Get the current weather for a city")]
    (folder / "tools.json").write_text(json.dumps(tools))
    modelfile = folder / "forecaster.Modelfile"
    modelfile.write_text(
        f"FROM {DEMO}\nPARAMETER num_ctx 2048\nPARAMETER temperature 0\n"
        "PARAMETER num_predict 100\nTOOLS ./tools.json\n"
    )
    return modelfile


@pytest.fixture(scope="module")
def server(agent: Path) -> Iterator[LiveServer]:
    with LiveServer("--allow-cpu", model=agent) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, **fields: Any):
    body = {"enable_thinking": False}
    answer = client.chat.completions.create(
        model="forecaster", messages=ASK, extra_body=body, **fields
    )
    return answer.choices[0], answer.usage.prompt_tokens


def test_an_agents_tool_is_called_though_the_client_offers_none(client):
    choice, _ = ask(client)
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_its_tool_can_be_required_and_named(client):
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer, _ = ask(client, tool_choice=choice)
        assert answer.message.tool_calls[0].function.name == "get_weather"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, tool_choice={"type": "function", "function": {"name": "get_time"}})
    assert caught.value.param == "tool_choice.function.name"


def test_an_empty_list_offers_none(client):
    _, shown = ask(client)
    none: list[dict[str, Any]] = [{"tools": []}, {"tool_choice": "none"}]
    for fields in none:
        choice, prompt = ask(client, **fields)
        assert choice.message.tool_calls is None
        assert prompt < shown


def test_a_clients_own_tools_replace_it(client):
    choice, _ = ask(client, tools=[tool("lookup", "Look something up")], tool_choice="required")
    assert {call.function.name for call in choice.message.tool_calls} == {"lookup"}


def test_a_person_is_shown_the_call(server):
    command = [sys.executable, "-m", "server", "run", "forecaster", ASK[0]["content"]]
    done = subprocess.run(
        [*command, "--url", server.url],
        env=os.environ | {"ONEGPU_DATA_DIR": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '(calls get_weather({"city": "Paris"}))' in done.stdout + done.stderr
