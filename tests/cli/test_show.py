from __future__ import annotations

import io
import sys
from pathlib import Path

from server.cli.main import main

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"


def test_a_terminal_without_unicode_is_told_in_ascii(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["show", str(DEMO)]) == 0
    screen.seek(0)
    assert " x 4096 tokens" in screen.read()
