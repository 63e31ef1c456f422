"""Bad input against the real thing: a clear error each time, no crash, no slot lost."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.live import LiveServer
from tests.e2e.watch import idle, until

pytestmark = pytest.mark.native

GOOD = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made
        until(lambda: idle(made))
        answer = made.post("/v1/chat/completions", json=GOOD)
        assert answer.status_code == 200


FIELDS = {
    "empty messages": ({"messages": []}, "messages"),
    "messages of a wrong type": ({"messages": "hi"}, "messages"),
    "a message without content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "an unknown role": ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    "huge n": ({"n": 10_000}, "n"),
    "negative max_tokens": ({"max_tokens": -1}, "max_tokens"),
    "max_tokens of a wrong type": ({"max_tokens": "many"}, "max_tokens"),
    "negative temperature": ({"temperature": -1}, "temperature"),
    "logit_bias out of range": ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    "negative logit_bias id": ({"logit_bias": {"-1": 1}}, "logit_bias"),
    "logit_bias that is no id": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "an image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:,"}}],
                }
            ]
        },
        "messages[0].content[0]",
    ),
    "an empty stop string": ({"stop": [""]}, "stop"),
}


@pytest.mark.parametrize(("fields", "param"), FIELDS.values(), ids=FIELDS)
def test_a_wrong_field_is_named(client, fields, param):
    answer = client.post("/v1/chat/completions", json=GOOD | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)


@pytest.mark.parametrize(
    "body",
    [b'{"model": "demo", ', b"\xff\xfe{}", b"", b"[]", b'{"temperature": NaN}', b"[" * 100_000],
    ids=["cut JSON", "not UTF-8", "empty", "a list", "NaN", "nested too deeply"],
)
def test_a_body_that_cannot_be_read(client, body):
    answer = client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_an_unknown_model(client):
    answer = client.post("/v1/chat/completions", json=GOOD | {"model": "gpt-17"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "'demo'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("words", "max_tokens"), [(5000, None), (10, 2048)])
def test_what_does_not_fit_the_context(client, words, max_tokens):
    body = GOOD | {"messages": [{"role": "user", "content": "hello " * words}]}
    body["max_tokens"] = max_tokens
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "2048" in error["message"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(server):
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-length", str(100_000_000))
    connection.putheader("content-type", "application/json")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "request_too_large"
    connection.close()


def test_a_body_that_grows_over_the_limit_is_refused(client):
    def pieces() -> Iterator[bytes]:
        yield b'{"messages": "'
        for _ in range(100):
            yield b"x" * 1_000_000

    try:
        answer = client.post("/v1/chat/completions", content=pieces())
    except httpx.WriteError:
        pytest.fail("the refusal was lost: the connection was reset before it could be read")
    assert answer.status_code == 413


def test_an_unknown_path_has_the_one_form_of_errors(client):
    answer = client.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
