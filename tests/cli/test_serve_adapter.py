from __future__ import annotations

from pathlib import Path

import pytest

from server.assembly.sizing import grouped, sized
from server.assembly.wanted import wanted
from server.catalog.plan import Memory
from server.cli.main import main
from server.cli.pull import ensure
from server.core.errors import ModelFileError
from server.settings import Settings
from tests.adapters import AdapterSpec, write_adapter
from tests.catalog.hub_server import HubServer
from tests.models import ModelSpec, write_model

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"


@pytest.mark.parametrize("address", ["http://x.test/a.gguf", "https://x.test/a.gguf"])
def test_an_adapter_on_another_server_is_refused_with_what_to_do(tmp_path, capsys, address):
    path = tmp_path / "docs.Modelfile"
    path.write_text(f"FROM {DEMO}\nADAPTER {address}\n", encoding="utf-8")
    assert main(["serve", str(path), "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert f"docs.Modelfile:2:9: ADAPTER: {address} is not on the hub" in told
    assert "Download it yourself" in told


def test_an_adapter_on_the_hub_is_downloaded_once_and_must_be_one(tmp_path, capsys):
    model = write_model(tmp_path / "m.gguf", ModelSpec())
    adapter = write_adapter(tmp_path / "a-lora.gguf", AdapterSpec(), ModelSpec())
    path = tmp_path / "docs.Modelfile"
    with HubServer() as hub:
        hub.add("o/r", {"a-lora.gguf": adapter.read_bytes(), "b-lora.gguf": model.read_bytes()})
        told = {"models_dir": tmp_path / "models", "hub": {"endpoint": hub.endpoint}}
        settings = Settings.model_validate(
            {"model": {"path": path}, "engine": {"n_ctx": 128}, **told}
        )

        def fetch(text: str) -> Path:
            return Path(text) if Path(text).is_file() else ensure(text, settings)

        def size(name: str) -> Path | None:
            url = f"https://huggingface.co/o/r/resolve/main/{name}"
            path.write_text(f"FROM {model}\nADAPTER {url}\n", encoding="utf-8")
            memory = Memory(cpu_available=2**40)
            (one,) = sized(grouped(wanted(settings, fetch), memory), memory)
            return one.group.model.adapter

        assert size("a-lora.gguf") == tmp_path / "models/o/r/a-lora.gguf"
        assert "verified SHA-256" in capsys.readouterr().err
        size("a-lora.gguf")
        assert "is there" in capsys.readouterr().err
        with pytest.raises(ModelFileError, match=r"no adapter|whole model"):
            size("b-lora.gguf")
