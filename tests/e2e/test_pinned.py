"""Pinned prompts of a real server: there before anybody asks, again after the model was loaded again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.live import LiveServer
from tests.e2e.watch import until
from tests.models import ModelSpec, write_model

pytestmark = pytest.mark.native

SYSTEM = "You know about slots, and about what they hold while nobody uses them. " * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder: Path = tmp_path_factory.mktemp("pinned")
    model = write_model(folder / "base.gguf", ModelSpec(script=(b"yes",)))
    (folder / "docs.Modelfile").write_text(f"FROM {model}\nPARAMETER pin true\nSYSTEM {SYSTEM}\n")
    config = folder / "onegpu.yaml"
    config.write_text(
        f"models: {{docs: {{from: {folder}/docs.Modelfile}}}}\nengine: {{n_ctx: 1024, slots: 2}}\n"
    )
    with LiveServer("--config", str(config), "--allow-cpu", model=model) as running:
        yield running


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def value(http: httpx.Client, name: str) -> float:
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    assert len(lines) == 1, lines
    return float(lines[0].rsplit(" ", 1)[1])


def test_a_pinned_prompt_is_there_at_the_first_request_and_after_every_load(http):
    for _ in range(2):
        until(lambda: value(http, "onegpu_pins_kept{") == 1)
        messages = [{"role": "user", "content": "What is a slot?"}]
        answer = http.post("/v1/chat/completions", json={"model": "docs", "messages": messages})
        usage = answer.json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > len(SYSTEM) // 8
        assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] < 40
        http.post("/models/unload", json={"model": "docs"}).raise_for_status()
        until(lambda: value(http, "onegpu_up{") == 0)
        http.post("/models/load", json={"model": "docs"}).raise_for_status()
    until(lambda: value(http, "onegpu_pins_kept{") == 1)
