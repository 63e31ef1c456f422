"""Two agents and two models in one process: shared weights, loading on demand, unloading."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.live import DEMO, LiveServer
from tests.e2e.watch import until
from tests.models import ModelSpec, write_model

pytestmark = pytest.mark.native

SAID = (b"one", b" two", b" three")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The demo model with two agents, and a scripted model; memory for one of the two models."""
    folder = tmp_path_factory.mktemp("models")
    other = write_model(folder / "other.gguf", ModelSpec(script=SAID))
    (folder / "docs.Modelfile").write_text(
        f"FROM {DEMO}\nPARAMETER num_ctx 512\nPARAMETER temperature 0\n"
        "PARAMETER overflow drop_oldest\nSYSTEM You know about slots.\n"
    )
    (folder / "brief.Modelfile").write_text(
        f"FROM {DEMO}\nPARAMETER num_predict 8\nPARAMETER temperature 0\nSYSTEM Be brief.\n"
    )
    config = folder / "onegpu.yaml"
    config.write_text(
        f"modelfiles: {folder}\nengine: {{n_ctx: 2048, slots: 2}}\n"
        f"models: {{other: {{from: {other}, n_ctx: 256}}}}\n"
    )
    with LiveServer("--config", str(config)) as running:
        yield running


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def ask(http: httpx.Client, model: str, text: str = "What is a slot?", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return http.post("/v1/chat/completions", json={"temperature": 0, "max_tokens": 8} | body)


def card(http: httpx.Client, model: str) -> dict:
    return http.get(f"/v1/models/{model}").json()


def loads(http: httpx.Client, model: str) -> int:
    line = f'onegpu_model_loads_total{{model="{model}"}} '
    text = http.get("/metrics").text
    return int(float(next(row for row in text.splitlines() if row.startswith(line)).split()[-1]))


def test_agents_share_one_set_of_weights_and_one_pool(server, http):
    answers = [ask(http, model) for model in ("demo", "docs", "brief")]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.json()["model"] for answer in answers] == ["demo", "docs", "brief"]
    assert {card(http, model)["weights"] for model in ("demo", "docs", "brief")} == {"demo"}
    assert loads(http, "demo") == 1
    assert card(http, "docs")["context_window"] == 512
    # The agents' words reach the model.
    prompts = [answer.json()["usage"]["prompt_tokens"] for answer in answers]
    assert prompts[1] > prompts[0] < prompts[2]
    assert "Also served: other, brief, docs" in "".join(server.stdout)


def test_two_models_answer_at_once(http, server):
    streams: dict[str, list[str]] = {"demo": [], "other": []}

    def read(model: str) -> None:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            for chunk in client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "What is a slot?"}],
                temperature=0,
                max_tokens=30,
                stream=True,
            ):
                streams[model].append(chunk.choices[0].delta.content or "")

    threads = [threading.Thread(target=read, args=(model,)) for model in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "".join(streams["other"]) == "one two three"
    assert "slot" in "".join(streams["demo"]).lower()
    assert [card(http, model)["state"] for model in streams] == ["ready", "ready"]


def test_an_over_long_chat_loses_its_oldest_turns_and_says_so(http):
    turns = [
        {"role": role, "content": f"{role} {number} " + "word " * 40}
        for number in range(12)
        for role in ("user", "assistant")
    ]
    messages = [*turns, {"role": "user", "content": "What is a slot?"}]
    body = {"model": "docs", "messages": messages, "max_tokens": 8}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    dropped = int(answer.headers["x-onegpu-dropped-turns"])
    assert 0 < dropped < 12
    assert answer.json()["onegpu"] == {"dropped_turns": dropped}
    refused = ask(http, "brief", max_tokens=9)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "max_tokens"


def test_unloading_lets_a_stream_finish_and_the_next_request_loads_again(http, server):
    assert ask(http, "other").json()["choices"][0]["message"]["content"] == "one two three"
    before = loads(http, "other")
    fields = {"model": "other", "messages": [{"role": "user", "content": "go"}], "stream": True}
    fields |= {"ignore_eos": True, "max_tokens": 200, "temperature": 0}
    with http.stream("POST", "/v1/chat/completions", json=fields) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        with server.client() as second:
            told = second.post("/models/unload", json={"model": "other"}).json()
            assert told["success"] is True
        rest = [line for line in lines if line.startswith("data: ")]
    assert json.loads(first[6:])["model"] == "other"
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
    until(lambda: card(http, "other")["state"] == "unloaded")
    assert http.get("/slots?model=other").json() == []
    assert ask(http, "other").status_code == 200
    assert loads(http, "other") == before + 1


def test_an_unknown_name_names_the_nearest(http):
    error = ask(http, "doc").json()["error"]
    assert error["code"] == "model_not_found"
    assert "did you mean 'docs'" in error["message"]


def test_what_was_used_longest_ago_makes_room(tmp_path: Path):
    """Room for two of three models, as their plans say."""
    paths = [write_model(tmp_path / f"m{n}.gguf", ModelSpec(script=SAID, seed=n)) for n in range(3)]
    entries = ", ".join(f"m{n}: {{from: {paths[n]}}}" for n in (1, 2))
    config = tmp_path / "onegpu.yaml"
    text = f"engine: {{n_ctx: 256, slots: 1}}\nmodels: {{{entries}}}\n"
    config.write_text(text)
    with LiveServer("--config", str(config), model=paths[0]) as server, server.client() as http:
        need = card(http, "m0")["memory"]["cpu"]
    config.write_text(f"{text}memory: {{ram: {need * 5 // 2}}}\n")
    with LiveServer("--config", str(config), model=paths[0]) as server, server.client() as http:

        def states() -> list[str]:
            return [card(http, f"m{n}")["state"] for n in range(3)]

        assert ask(http, "m1").status_code == 200
        assert states() == ["ready", "ready", "unloaded"]
        assert ask(http, "m0").status_code == 200
        assert ask(http, "m2").status_code == 200
        assert states() == ["ready", "unloaded", "ready"]
        assert ask(http, "m1").status_code == 200
        assert states() == ["unloaded", "ready", "ready"]
        assert [loads(http, f"m{n}") for n in range(3)] == [1, 2, 1]
