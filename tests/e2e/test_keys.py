"""A real server while keys come, change and go: the official client is the judge."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.store.connection import FILE
from tests.e2e.live import LiveServer

pytestmark = [pytest.mark.native, pytest.mark.slow]

LONG = "The slots of a server are the requests that it runs at once. " * 20


class Keyring:
    """`onegpu keys` over the data directory of a running server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *argv: str) -> str:
        command = [sys.executable, "-m", "server", "keys", *argv]
        command += ["--data-dir", str(self.directory)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def keys(tmp_path) -> Keyring:
    return Keyring(tmp_path / "data")


@pytest.fixture
def server(keys) -> Iterator[LiveServer]:
    arguments = ("--slots", "2", "--n-ctx", "1024")
    with LiveServer(*arguments, data_dir=keys.directory) as running:
        yield running


@contextlib.contextmanager
def client(server: LiveServer, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as opened:
        yield opened


def ask(server: LiveServer, key: str, content: str = "Hi"):
    with client(server, key) as opened:
        return opened.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": content}],
            max_tokens=4,
            temperature=0,
        )


def cached(answer) -> int:
    return answer.usage.prompt_tokens_details.cached_tokens


def test_a_servers_life_with_keys(server, keys) -> None:
    assert ask(server, "none").choices[0].message.content is not None

    first = keys.run("create", "first")
    with pytest.raises(openai.AuthenticationError) as refusal:
        ask(server, "none")
    assert refusal.value.code == "invalid_api_key"
    assert ask(server, first).usage.completion_tokens > 0
    with client(server, first) as opened:
        assert [model.id for model in opened.models.list()] == ["demo"]

    second = keys.run("rotate", "first", "--overlap", "1h")
    for key in (first, second):
        assert ask(server, key).usage.completion_tokens > 0
    third = keys.run("rotate", "first")
    with pytest.raises(openai.AuthenticationError):
        ask(server, first)
    assert ask(server, third).usage.completion_tokens > 0

    keys.run("create", "other", "--models", "something-else", "--expires", "1h")
    other = keys.run("rotate", "other")
    with pytest.raises(openai.PermissionDeniedError) as denied:
        ask(server, other)
    assert denied.value.code == "model_not_allowed"
    with client(server, other) as opened:
        assert list(opened.models.list()) == []

    with client(server, third) as opened:
        stream: Any = opened.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, stream=True
        )
        assert list(stream)[-1].choices[0].finish_reason is not None
    keys.run("revoke", "first", "other")
    for key in (third, other):
        with pytest.raises(openai.AuthenticationError, match="revoked"):
            ask(server, key)

    server.__exit__()
    for secret in (first, second, third, other):
        assert secret.split("_")[2][:20] not in "".join((*server.stderr, *server.stdout))
    assert f" key={first.split('_')[1]}" in "".join(server.stderr)


def test_cached_tokens_tell_no_key_what_another_asked(server, keys) -> None:
    mine, yours = keys.run("create", "mine"), keys.run("create", "yours")

    assert cached(ask(server, mine, LONG)) == 0
    again = ask(server, mine, LONG)
    assert cached(again) > 100
    theirs = ask(server, yours, LONG)
    assert cached(theirs) == 0
    assert theirs.choices[0].message.content == again.choices[0].message.content
    assert cached(ask(server, yours, LONG)) > 100
    assert cached(ask(server, mine, LONG)) > 100
    # Nor does an answer say why; the log does.
    assert "prefix_missed" not in theirs.model_dump_json()
    server.__exit__()
    asked = [line for line in server.stderr if "cached_tokens=" in line]
    reasons = [line.partition("prefix_missed=")[2].split()[:1] for line in asked]
    assert reasons == [["none"], [], ["scope"], [], []]


def test_a_store_that_is_lost_while_serving_shuts_nobody_out_who_was_in(server, keys) -> None:
    used, unused = keys.run("create", "used"), keys.run("create", "unused")
    ask(server, used)
    for path in keys.directory.iterdir():
        path.unlink()
    (keys.directory / FILE).write_bytes(b"garbage" * 1000)

    assert ask(server, used).usage.completion_tokens > 0
    with pytest.raises(openai.InternalServerError) as refusal:
        ask(server, unused)
    assert (refusal.value.status_code, refusal.value.code) == (503, "store_unavailable")
    with server.client() as http:
        assert http.get("/health/ready").status_code == 200
        assert http.get("/metrics").status_code == 401

    (keys.directory / FILE).unlink()
    new = keys.run("create", "new")
    assert ask(server, new).usage.completion_tokens > 0
    with pytest.raises(openai.AuthenticationError):
        ask(server, used)
    server.__exit__()
    told = "".join(server.stderr)
    assert "is damaged" in told
    assert "API keys can be looked up again" in told
