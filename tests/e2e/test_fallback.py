"""A model that is loaded again is answered for by a small one, over a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.live import LiveServer
from tests.e2e.watch import until
from tests.models import ModelSpec, write_model

pytestmark = pytest.mark.native


def loaded(server: LiveServer) -> list[str]:
    """What the log says was loaded, in its order."""
    lines = [line for line in server.stderr if "Loaded " in line]
    return [line.split("Loaded ")[1].split()[0] for line in lines]


def test_a_model_that_is_not_loaded_is_answered_for_until_it_is(tmp_path: Path) -> None:
    spare = write_model(tmp_path / "spare.gguf", ModelSpec(script=(b"one", b" two", b" three")))
    config = tmp_path / "onegpu.yaml"
    config.write_text(
        f"engine: {{n_ctx: 256, slots: 2}}\nmodels: {{spare: {{from: {spare}, preload: true}}}}\n"
        "aliases: {gpt: demo}\ngateway: {fallback: {model: spare}}\n"
    )
    body = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    with LiveServer("--config", str(config)) as server, server.client() as http:
        until(lambda: loaded(server) == ["spare", "demo"])

        def ask(**headers: str):
            return http.post("/v1/chat/completions", json=body, headers=headers)

        assert ask().json()["model"] == "demo"
        http.post("/models/unload", json={"model": "demo"})
        until(lambda: http.get("/v1/models/demo").json()["state"] == "unloaded")
        answer = ask()
        assert (answer.status_code, answer.json()["model"]) == (200, "spare")
        told = {name: value for name, value in answer.headers.items() if "x-fallback" in name}
        assert told == {"x-fallback-model": "spare", "x-fallback-reason": "loading"}
        until(lambda: ask().json()["model"] == "demo")
        http.post("/models/unload", json={"model": "demo"})
        until(lambda: http.get("/v1/models/demo").json()["state"] == "unloaded")
        refusing = ask(**{"x-fallback": "none"})
        assert (refusing.status_code, refusing.json()["model"]) == (200, "demo"), "it waits"
        metrics = http.get("/metrics").text
        labels = '{model="demo",reason="loading",target="spare"}'
        assert f"onegpu_fallbacks_total{labels}" in metrics
