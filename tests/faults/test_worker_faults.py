"""The rows of the fault table that end the serving process, under the real command."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.live import LiveServer
from tests.e2e.watch import children, running_slots, until
from tests.faults.injectors import SIGNALS
from tests.faults.table import ROWS, Row

pytestmark = pytest.mark.native
CHAT = "/v1/chat/completions"
BODY = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
LONG = {"max_tokens": 1900, "ignore_eos": True}


def outcome(server: LiveServer, **fields: object) -> str:
    """`200` for a whole answer, `closed` for a connection that ended before it was one."""
    with server.client() as http:
        try:
            answer = http.post(CHAT, json=BODY | fields)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            return "closed"
    assert answer.status_code == 200
    if fields.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    return "200"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", SIGNALS)
def test_what_comes_of_it(name: str, *, stream: bool) -> None:
    row = ROWS[name]
    with LiveServer("--slots", "2", "--n-ctx", "2048") as server, server.client() as http:
        with ThreadPoolExecutor(2) as threads:
            both = [
                threads.submit(outcome, server, stream=stream, seed=seed, **LONG)
                for seed in range(2)
            ]
            until(lambda: running_slots(http) == 2)
            (worker,) = children(server.process.pid)
            os.kill(worker, SIGNALS[name])
            victim, neighbour = (each.result() for each in both)
        later = outcome(server, stream=stream, max_tokens=4)
        live = http.get("/health/live").json()["status"]
        metrics = http.get("/metrics").text.splitlines()
    assert Row(victim, neighbour, later, live, row.counted) == row
    assert f"{row.counted} 1.0" in metrics
