from __future__ import annotations

from pathlib import Path

import pytest

from server.cli.main import main

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"


@pytest.mark.parametrize("address", ["http://x.test/a.gguf", "https://x.test/a.gguf"])
def test_an_adapter_on_another_server_is_refused_with_what_to_do(tmp_path, capsys, address):
    path = tmp_path / "docs.Modelfile"
    path.write_text(f"FROM {DEMO}\nADAPTER {address}\n", encoding="utf-8")
    assert main(["serve", str(path), "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert f"docs.Modelfile:2:9: ADAPTER: {address} is not on the hub" in told
    assert "Download it yourself" in told
