from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from server.cli.main import COMMANDS, main

DEMO = Path(__file__).parents[2] / "models" / "demo.gguf"
HELP = [[module.__name__.rpartition(".")[2].replace("_", "-"), "--help"] for module in COMMANDS]


@pytest.fixture
def shown(monkeypatch):
    """Run a command with the standard output of a C locale; gives status and output."""

    def run(*argv: str) -> tuple[object, str]:
        screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", screen)
        try:
            status: object = main(argv)
        except SystemExit as stop:
            status = stop.code
        screen.seek(0)
        return status, screen.read()

    return run


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["show", str(DEMO)], " x 4096 tokens"),
        (["plan", str(DEMO), "--slots", "64", "--ram", "400MiB"], "64 x 8192 tokens"),
    ],
)
def test_a_terminal_without_unicode_is_told_in_ascii(shown, argv, text):
    assert text in shown(*argv)[1]


@pytest.mark.parametrize("argv", [["--help"], *HELP])
def test_a_terminal_without_unicode_gets_help(shown, argv):
    status, out = shown(*argv)
    assert status == 0
    assert "usage: onegpu" in out


def test_names_that_the_encoding_lacks_are_written_as_escapes(shown, tmp_path):
    (tmp_path / "日本×.gguf").write_bytes(DEMO.read_bytes()[:4])
    status, out = shown("list", "--models-dir", str(tmp_path))
    assert status == 0
    assert r"/\u65e5\u672cx.gguf" in out
