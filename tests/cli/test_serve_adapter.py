from __future__ import annotations

from pathlib import Path

import pytest

from server.assembly.grouping import grouped
from server.assembly.sizing import sized
from server.assembly.wanted import wanted
from server.catalog.hub_errors import HubError
from server.catalog.plan import Memory
from server.cli.main import main
from server.cli.pull import ensure
from server.core.errors import ModelFileError
from server.settings import Settings
from tests.adapters import AdapterSpec, write_adapter
from tests.catalog.hub_server import HubServer
from tests.models import ModelSpec, write_model

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"


def modelfile(folder: Path, text: str) -> Path:
    path = folder / "docs.Modelfile"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ADAPTER http://x.test/a.gguf", ":2:9: http://x.test/a.gguf: over http anybody"),
        ("ADAPTER https://x.test/a.gguf#v2", ":2:9: https://x.test/a.gguf#v2: what follows #"),
    ],
)
def test_an_address_that_must_not_be_asked_is_told_with_its_line(tmp_path, capsys, line, told):
    path = modelfile(tmp_path, f"FROM {DEMO}\n{line}\n")
    assert main(["serve", str(path), "--port", "0"]) == 2
    assert f"docs.Modelfile{told}" in capsys.readouterr().err


def test_weights_from_any_address_are_refused_with_what_to_do(tmp_path, capsys):
    path = modelfile(tmp_path, "FROM https://x.test/m.gguf\n")
    assert main(["serve", str(path), "--port", "0"]) == 2
    assert "https://x.test/m.gguf is not on the hub" in capsys.readouterr().err


def test_an_adapter_at_an_address_is_downloaded_once_and_must_fit_the_model(tmp_path, capsys):
    model = write_model(tmp_path / "m.gguf", ModelSpec())
    fits = write_adapter(tmp_path / "a-lora.gguf", AdapterSpec(), ModelSpec())
    other = write_adapter(tmp_path / "b-lora.gguf", AdapterSpec(architecture="llama"), ModelSpec())
    with HubServer() as server:
        server.add("o/r", {each.name: each.read_bytes() for each in (fits, other)})

        def size(name: str, **hub: object) -> Path | None:
            line = f"ADAPTER {server.endpoint}/o/r/resolve/main/{name}"
            path = modelfile(tmp_path, f"FROM {model}\n{line}\n")
            settings = Settings.model_validate(
                {"model": {"path": path}, "models_dir": tmp_path / "models", "hub": hub}
            )

            def fetch(text: str) -> Path:
                return Path(text) if Path(text).is_file() else ensure(text, settings)

            memory = Memory(cpu_available=2**40)
            (one,) = sized(grouped(wanted(settings, fetch), memory), memory)
            return one.group.model.adapter

        with pytest.raises(HubError, match=r":2:9: ADAPTER: .* offline mode forbids"):
            size("a-lora.gguf", offline=True)
        adapter = size("a-lora.gguf")
        assert adapter is not None
        assert adapter.read_bytes() == fits.read_bytes()
        assert "#sha256=" in capsys.readouterr().err
        asked = len(server.requests)
        assert size("a-lora.gguf", offline=True) == adapter
        assert len(server.requests) == asked
        with pytest.raises(ModelFileError, match="made for the architecture 'llama'"):
            size("b-lora.gguf")


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
