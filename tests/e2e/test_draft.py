"""A served draft model: answers are as without one, and the log and the counters tell of it."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.e2e.live import DEMO, LiveServer
from tests.e2e.watch import until

pytestmark = pytest.mark.native

QUESTIONS = ["What is a slot?", "Who are you?", "What does the batch tier do?"]


def answers(http: httpx.Client) -> list[str]:
    made = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 80}
        answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
        made.append(answer["choices"][0]["message"]["content"])
    return made


def test_a_server_with_a_draft_model_says_the_same():
    with LiveServer("--allow-cpu", "--n-ctx", "512") as plain, plain.client() as http:
        expected = answers(http)
    with (
        LiveServer("--allow-cpu", "--n-ctx", "512", "--draft", str(DEMO)) as server,
        server.client() as http,
    ):
        assert answers(http) == expected
        found = re.findall(
            r'^onegpu_engine_events_total{event="(\w+)".*} ([0-9.]+)$',
            http.get("/metrics").text,
            re.MULTILINE,
        )
        events = {name: float(count) for name, count in found}
        # What it is tried for at least; whether it goes on depends on how long calls take.
        assert events["draft_calls"] >= 1
        assert 1 <= events["accepted_by_model"] <= events["drafted_by_model"]
        assert "is not smaller than" in "".join(server.stderr)
        http.post("/models/unload", json={"model": "demo"}).raise_for_status()
        until(lambda: http.get("/v1/models").json()["data"][0]["state"] == "unloaded")
        assert answers(http) == expected
        report = re.compile(r"demo\.gguf: planned/allocated MiB: (.*)")
        # Of both models, at both loads.
        until(lambda: len(report.findall("".join(server.stderr))) == 4)
        assert "OVER" not in "".join(report.findall("".join(server.stderr)))
