"""A model that is loaded again is answered for by a small one, over a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.live import LiveServer
from tests.e2e.watch import until
from tests.models import ModelSpec, write_model

pytestmark = pytest.mark.native
CHAT = "/v1/chat/completions"


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
            return http.post(CHAT, json=body, headers=headers)

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


def test_a_server_stands_in_for_another_until_it_is_gone(tmp_path: Path) -> None:
    script = tuple(b" word%d" % number for number in range(200))
    far = write_model(tmp_path / "far.gguf", ModelSpec(script=script))
    with LiveServer("--n-ctx", "512", model=far) as other:
        config = tmp_path / "onegpu.yaml"
        config.write_text(
            "engine: {n_ctx: 256, slots: 2}\n"
            f"remotes: {{far: {{base_url: '{other.url}/v1', model: far, failures: 1}}}}\n"
            "gateway: {fallback: {models: {far: [demo]}}}\n"
        )
        body = {"model": "far", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        with LiveServer("--config", str(config)) as server, server.client() as http:
            whole = http.post(CHAT, json={**body, "stream": False}).json()
            assert (whole["model"], whole["choices"][0]["message"]["content"][:6]) == (
                "far",
                " word0",
            )
            assert whole["usage"]["completion_tokens"] == 200
            probed = 'onegpu_remote_probes_total{outcome="ok",remote="far"}'
            until(lambda: probed in http.get("/metrics").text)
            lines: list[str] = []
            with http.stream("POST", CHAT, json=body) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    if "word3" in line:
                        other.process.kill()
                        other.wait()
            events = [line for line in lines if line.startswith("data: ")]
            ended = "[DONE]" in events[-1] or "remote_failed" in events[-1]
            assert ended, "whole, if all of it had come, or an error"
            whole_body = {**body, "stream": False}
            until(lambda: "x-fallback-model" in http.post(CHAT, json=whole_body).headers)
            stood_in = http.post(CHAT, json=whole_body)
            told = {name: text for name, text in stood_in.headers.items() if "x-fallback" in name}
            assert stood_in.json()["model"] == "demo"
            assert told == {"x-fallback-model": "demo", "x-fallback-reason": "remote"}
