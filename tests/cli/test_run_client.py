"""What the command line reads from a server: events, streams, errors."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cli.chat.client import Client, ServerError
from server.cli.chat.sse import Comment, Event, events
from server.cli.chat.thinking import ThinkingSplitter
from server.core.errors import ConfigError
from tests.cli.scripted_server import DONE, ScriptedServer, chunk, says


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b"data: a\n\n", [Event("a")]),
        (b"data:a\r\n\r\ndata: b\r\n\r\n", [Event("a"), Event("b")]),
        (b"data: a\ndata:  b\ndata\n\n", [Event("a\n b\n")]),
        (b": queued 3/12\n\ndata: a\n\n", [Comment("queued 3/12"), Event("a")]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n\n\n", [Event("a")]),
        (b"data: \xc3\xa4\n\ndata: cut off", [Event("ä")]),
        (b"", []),
    ],
)
def test_events(raw, read):
    assert list(events(raw.splitlines(keepends=True))) == read


TEXTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</thi", "nk>", "\n", " ", "hm", "5 < 6"]),
    max_size=8,
).map("".join)


@given(TEXTS, st.data())
def test_thinking_is_told_apart_however_the_text_is_cut(text, data):
    whole = split(text)

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert split(*pieces) == whole


def split(*pieces):
    splitter = ThinkingSplitter()
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    return {
        kind: "".join(text for each, text in parts if each == kind)
        for kind in ("thinking", "answer")
    }


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>\nhm\n</think>\n\nYes", "\nhm\n", "Yes"),
        ("\n<think>hm", "hm", ""),
        ("<think></think>Yes", "", "Yes"),
        ("Use <think> tags", "", "Use <think> tags"),
        ("<thin", "", "<thin"),
        ("<think>a </think b</thi", "a </think b</thi", ""),
        ("  plain", "", "  plain"),
    ],
)
def test_only_thoughts_at_the_beginning_count(text, thinking, answer):
    assert split(text) == {"thinking": thinking, "answer": answer}


def test_a_stream_is_read_to_its_end():
    call = {"index": 0, "id": "c", "function": {"name": "add", "arguments": "{}"}}
    stream = [
        b": queued 2/3, about 1 s\n\n",
        chunk("", role="assistant", extra={"onegpu": {"dropped_turns": 2}}),
        chunk(reasoning_content="hm"),
        chunk("Hé"),
        chunk(tool_calls=[call]),
        chunk(finish="tool_calls"),
        b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n',
        DONE,
    ]
    with ScriptedServer(m={}) as server:
        server.chats(stream)
        pieces = list(Client(server.url + "/v1/", "k").chat({"model": "m"}))

    assert [piece.status for piece in pieces if piece.status] == ["queued 2/3, about 1 s"]
    assert "".join(piece.content for piece in pieces) == "Hé"
    assert "".join(piece.reasoning for piece in pieces) == "hm"
    assert [piece.finish for piece in pieces if piece.finish] == ["tool_calls"]
    assert [piece.calls for piece in pieces if piece.calls] == [(call,)]
    assert max(piece.dropped_turns for piece in pieces) == 2
    assert pieces[-1].usage == {"total_tokens": 3}
    assert server.bodies == [{"model": "m", "stream": True}]
    assert server.headers[0]["Authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("answer", "says_", "status"),
    [
        (
            [chunk("a"), b'data: {"error": {"message": "it broke", "code": "engine_dead"}}\n\n'],
            "it broke",
            0,
        ),
        ([chunk("a")], "ended the answer before it was complete", 0),
        ([b"data: {nonsense\n\n"], "not JSON", 0),
        (
            (503, {"error": {"message": "full; come back", "code": "queue_full"}}),
            "full; come back",
            503,
        ),
        ((401, {"error": {"message": "no"}}), "asks for a key: ONEGPU_KEY, or --key", 401),
        ((500, "<html>"), "answered 500", 500),
        ((404, {"error": "as Ollama says it"}), "as Ollama says it", 404),
    ],
)
def test_failures_say_what_happened(answer, says_, status):
    with ScriptedServer(m={}) as server:
        server.chats(answer)
        with pytest.raises(ServerError, match=says_) as caught:
            list(Client(server.url).chat({}))

    assert caught.value.status == status


def test_a_wrong_key_is_told_from_a_missing_one():
    with ScriptedServer() as server:
        server.routes["GET /v1/models"] = (401, {})
        with pytest.raises(ServerError, match="does not know this key"):
            Client(server.url, "wrong").models()


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(
        ServerError, match=r"No server answers .* Start one with `onegpu serve MODEL`"
    ):
        Client(f"127.0.0.1:{port}").models()


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"data": [1]}', '{"models": []}'])
def test_another_kind_of_server(answer):
    with ScriptedServer() as server:
        server.routes["GET /v1/models"] = (200, answer)
        with pytest.raises(ServerError, match=r"not speak the OpenAI API|is not this server"):
            Client(server.url).models()


def test_leaving_a_stream_ends_the_generation():
    def endless():
        while True:
            yield chunk("more ")

    with ScriptedServer(m={}) as server:
        server.chats(endless())
        pieces = Client(server.url).chat({})
        next(pieces)
        pieces.close()

        assert server.gone.wait(30)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://x", "http://", "http://x:port", "http://x:99999"),
        *("http://a..b", "http://[::1", "http://gpu box"),
    ],
)
def test_wrong_urls(url):
    with pytest.raises(ConfigError, match=r"is not a URL"):
        Client(url)


def test_a_key_with_a_line_break_is_refused():
    with pytest.raises(ConfigError, match=r"cannot be part of a key"):
        Client("http://x", "a\nb")


def test_a_path_before_v1_is_kept():
    with ScriptedServer() as server:
        server.routes["GET /proxy/v1/models"] = (200, {"data": []})
        assert Client(f"{server.url}/proxy/v1").models() == []
        server.routes["POST /proxy/v1/chat/completions"] = (200, says("x"))
        assert [piece.content for piece in Client(f"{server.url}/proxy").chat({})] == ["x", ""]


def test_a_path_in_any_script_is_asked_for():
    with ScriptedServer() as server:
        server.routes["GET /%C3%BC/v1/models"] = (200, {"data": []})
        assert Client(f"{server.url}/ü").models() == []
