"""Retries with an idempotency key against a real model: the official client, its connection cut."""

from __future__ import annotations

import openai
import pytest

from tests.e2e.live import LiveServer

pytestmark = pytest.mark.native

ASK = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Tell me of slots."}],
    "max_tokens": 400,
    "temperature": 2.0,
    "extra_body": {"ignore_eos": True},
    "stream_options": {"include_usage": True},
}


def text(chunks) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_a_stream_that_was_cut_is_had_whole_and_is_computed_once(server: LiveServer) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        server.client() as http,
    ):

        def ask(key: str):
            headers = {"Idempotency-Key": key}
            return client.chat.completions.create(**ASK, stream=True, extra_headers=headers)

        def completed() -> float:
            (line,) = (
                line
                for line in http.get("/metrics").text.splitlines()
                if line.startswith("onegpu_completion_tokens_total ")
            )
            return float(line.split()[1])

        before = completed()
        cut = ask("one")
        beginning = [next(cut) for _ in range(5)]
        cut.close()
        whole = list(ask("one"))
        assert whole[:5] == beginning
        assert list(ask("one")) == whole
        assert {chunk.id for chunk in whole} == {beginning[0].id}
        assert whole[-1].usage.completion_tokens == 400
        assert completed() - before == 400
        # At this temperature no two answers are alike, unless they are the same one.
        assert text(ask("two")) != text(whole)
