"""One process, one set of weights, two adapters and merged weights: what clients get from each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.adapters import AdapterSpec, write_adapter, write_merged
from tests.e2e.live import LiveServer
from tests.models import ModelSpec, write_model

pytestmark = [pytest.mark.native, pytest.mark.slow]

BASE = ModelSpec(script=(b"Hello", b" there", b",", b" you"))
SHORT = AdapterSpec(rewired=((b"Hello", b" you"),))
OTHER = AdapterSpec(rewired=((b" there", b"<|im_end|>"),))
SAID = {
    "base": "Hello there, you",
    "short": "Hello you",
    "merged": "Hello you",
    "other": "Hello there",
    "off": "Hello there, you",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_model(folder / "base.gguf", BASE)
    write_merged(folder / "merged.gguf", SHORT, BASE)
    for name, spec in (("short", SHORT), ("other", OTHER)):
        write_adapter(folder / f"{name}-lora.gguf", spec, BASE)
        text = f"FROM {folder}/base.gguf\nADAPTER {folder}/{name}-lora.gguf\n"
        (folder / f"{name}.Modelfile").write_text(text, encoding="utf-8")
    config = {
        "model": {"name": "base"},
        "models": {
            "short": {"from": str(folder / "short.Modelfile")},
            "other": {"from": str(folder / "other.Modelfile")},
            "merged": {"from": str(folder / "merged.gguf")},
        },
        "engine": {"slots": 2, "n_ctx": 256},
    }
    (folder / "onegpu.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def client(folder) -> Iterator[httpx.Client]:
    arguments = ("--config", str(folder / "onegpu.yaml"), "--allow-cpu")
    with LiveServer(*arguments, model=folder / "base.gguf") as server, server.client() as client:
        yield client


def ask(client: httpx.Client, model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "the same question for every one of them"}]
    body = {"model": model, "messages": messages, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cached(answer: dict[str, Any]) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_an_adapter_is_served_as_the_merged_weights_are_and_prefixes_stay_apart(client) -> None:
    names = ["base", "short", "other", "merged"]
    first = {name: ask(client, name) for name in names}
    again = {name: ask(client, name) for name in names}

    for round_ in (first, again):
        said = {name: answer["choices"][0]["message"]["content"] for name, answer in round_.items()}
        assert said == {name: SAID[name] for name in names}
    # The prompt is the same to the token: whose cells were shared, would answer from another's.
    assert [cached(answer) for answer in first.values()] == [0, 0, 0, 0]
    assert all(cached(answer) > 8 for answer in again.values())
    assert len({answer["system_fingerprint"] for answer in first.values()}) == 4


def test_the_settings_take_an_adapter_and_its_scale(folder) -> None:
    adapter = folder / "short-lora.gguf"
    config = folder / "adapted.yaml"
    for name, scale in (("short", 1.0), ("off", 0.0)):
        model = {"adapter": str(adapter), "adapter_scale": scale, "name": name}
        config.write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
        arguments = ("--config", str(config), "--n-ctx", "256", "--slots", "1", "--allow-cpu")
        with (
            LiveServer(*arguments, model=folder / "base.gguf") as server,
            server.client() as client,
        ):
            assert ask(client, name)["choices"][0]["message"]["content"] == SAID[name]


def test_a_whole_model_as_adapter_is_refused_before_anything_starts(folder) -> None:
    config = folder / "wrong.yaml"
    model = {"adapter": str(folder / "merged.gguf")}
    config.write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
    arguments = ("--config", str(config), "--n-ctx", "256", "--allow-cpu", "--port", "0")
    command = [sys.executable, "-m", "server", "serve", str(folder / "base.gguf"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode in (1, 2)
    assert "Listening" not in ended.stdout + ended.stderr
    assert "is a whole model, not an adapter" in ended.stderr
    assert "FROM" in ended.stderr
    assert "Traceback" not in ended.stderr
