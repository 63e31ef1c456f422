"""From a name to an answer: weights and adapter are fetched at the start, and not asked for again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.adapters import AdapterSpec, write_adapter
from tests.catalog.hub_server import HubServer
from tests.e2e.live import LiveServer
from tests.models import ModelSpec, write_model

pytestmark = pytest.mark.native

BASE = ModelSpec(script=(b"Hello", b" there", b",", b" you"))
REWIRED = AdapterSpec(rewired=((b"Hello", b" you"),))
REPOSITORY, FILE = "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"


def answers(config: Path, *flags: str) -> tuple[dict[str, str], str]:
    """Start the server, ask every model the same; return what they say, and what the server told."""
    arguments = ("--config", str(config), "--allow-cpu", *flags)
    said = {}
    with (
        LiveServer(*arguments, model=Path("qwen3:0.6b-q8_0")) as server,
        server.client() as http,
    ):
        for card in http.get("/v1/models").json()["data"]:
            messages = [{"role": "user", "content": "go"}]
            body = {"model": card["id"], "messages": messages, "temperature": 0}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            said[card["id"]] = answer.json()["choices"][0]["message"]["content"]
    return said, "".join(server.stderr)


def test_what_is_missing_is_pulled_and_served_and_then_needs_no_network(tmp_path):
    weights = write_model(tmp_path / "m.gguf", BASE).read_bytes()
    adapter = write_adapter(tmp_path / "a.gguf", REWIRED, BASE).read_bytes()
    folder = tmp_path / "agents"
    folder.mkdir()
    config = tmp_path / "onegpu.yaml"
    with HubServer() as hub:
        hub.add(REPOSITORY, {FILE: weights})
        hub.add("elsewhere/loras", {"a.gguf": adapter})
        address = f"{hub.endpoint}/elsewhere/loras/resolve/main/a.gguf"
        (folder / "tuned.Modelfile").write_text(f"FROM qwen3:0.6b-q8_0\nADAPTER {address}\n")
        settings = {
            "modelfiles": str(folder),
            "models_dir": str(tmp_path / "models"),
            "hub": {"endpoint": hub.endpoint},
            "engine": {"slots": 1, "n_ctx": 256},
        }
        config.write_text(yaml.safe_dump(settings))

        said, told = answers(config)

        assert said == {"qwen3:0.6b-q8_0": "Hello there, you", "tuned": "Hello you"}
        assert "verified SHA-256" in told
        assert f"pin it: ADAPTER {address}#sha256=" in told
    settings["hub"] = {"offline": True}
    config.write_text(yaml.safe_dump(settings))
    assert answers(config)[0] == said
