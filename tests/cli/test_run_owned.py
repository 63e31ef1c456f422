"""What a chat shows of the server that it starts, before that one answers."""

from __future__ import annotations

import sys

import pytest

from server.cli.chat.owned import OwnServer
from server.core.errors import OnegpuError

SERVER = """\
import sys
for line in (
    "2026-01-02T03:04:05.678Z info server.x: said to nobody",
    "2026-01-02T03:04:05.678Z warning server.assembly.wanted: a:2:1: PARAMETER numa has no effect",
    "m.gguf   10 %  1 GB of 10 GB",
    "2026-01-02T03:04:05.678Z info server.assembly.lifecycle: Listening on http://127.0.0.1:9; loading m",
    "later",
):
    print(line, file=sys.stderr, flush=True)
"""


def test_a_download_and_warnings_are_passed_on(monkeypatch):
    progress: list[str] = []
    warnings: list[str] = []
    own = OwnServer([], progress.append, warnings.append)
    monkeypatch.setattr("server.cli.chat.owned._COMMAND", [sys.executable, "-c", SERVER])

    with pytest.raises(OnegpuError, match="The server did not start:"):
        own.__enter__()

    assert set(progress) - {""} == {"m.gguf   10 %  1 GB of 10 GB"}
    assert warnings == ["a:2:1: PARAMETER numa has no effect"]
