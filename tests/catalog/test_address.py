"""Addresses of adapters: which are asked, what they are called, where their files lie."""

from pathlib import Path

import pytest

from server.catalog.address import parse_address
from server.core.errors import ConfigError

SUM = "0123456789abcdef" * 4
MODELS = Path("models")


def address(text: str):
    found = parse_address(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "text",
    [
        "models/a.gguf",
        "qwen3:4b",
        "hf:o/r/a.gguf",
        "https://huggingface.co/o/r/resolve/main/a.gguf",
        "https://hf.co/o/r/a.gguf",
    ],
)
def test_paths_names_and_the_hub_are_no_addresses(text) -> None:
    assert parse_address(text) is None


def test_a_pin_is_taken_from_the_fragment_in_any_case() -> None:
    pinned = address(f"https://x.test/d/a.gguf#SHA256={SUM.upper()}")
    assert (pinned.url, pinned.sha256) == ("https://x.test/d/a.gguf", SUM)
    assert pinned.name == f"https://x.test/d/a.gguf#sha256={SUM}"
    assert address("HTTPS://x.test/a.gguf").secure
    assert address("https://x.test/a.gguf").sha256 is None


def test_a_query_is_asked_with_but_not_told() -> None:
    signed = address("https://x.test/a.gguf?key=secret")
    assert signed.url.endswith("?key=secret")
    assert signed.name == "https://x.test/a.gguf?…"


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:80"])
def test_this_machine_may_be_asked_over_http(host) -> None:
    assert not address(f"http://{host}/a.gguf").secure


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://x.test/a.gguf", r"over http .* Write https://"),
        ("http://127.0.0.1.x.test/a.gguf", "over http"),
        ("https://me:word@x.test/a.gguf", "at x.test has a user's name or password"),
        ("https:///a.gguf", "is not an address"),
        ("https://x.test:port/a.gguf", "is not an address"),
        ("https://x.test/a b.gguf", "is not an address"),
        ("https://x.test/a.gguf#v2", "what follows # must be sha256="),
        (f"https://x.test/a.gguf#sha256={SUM[1:]}", "what follows # must be sha256="),
    ],
)
def test_what_cannot_or_must_not_be_asked_is_refused(text, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_address(text)
    assert "word" not in caught.value.message.replace("password", "")


def test_every_address_and_every_pin_has_a_place_of_its_own() -> None:
    texts = [
        "https://x.test/a.gguf",
        "https://x.test/b/a.gguf",
        "https://x.test/a.gguf?v=2",
        "https://y.test/a.gguf",
        f"https://x.test/a.gguf#sha256={SUM}",
    ]
    places = {address(text).target(MODELS) for text in texts}
    assert len(places) == len(texts)
    assert {place.name for place in places} == {"a.gguf"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a%2Fb.GGUF", "b.GGUF"),
        ("/..%2f..%2f.gguf", "gguf.gguf"),
        ("/download/", "download.gguf"),
        ("/", "adapter.gguf"),
        ("/%E6%97%A5.gguf", "_.gguf"),
        ("/%00%1b%5Dx.gguf", "___x.gguf"),
    ],
)
def test_a_name_from_the_network_stays_in_its_folder(path, name) -> None:
    target = address(f"https://x.test:99{path}").target(MODELS)
    assert target.name == name
    assert target.parent.parent == MODELS / "_adapters"
    assert target.parent.name.startswith("x.test_99-")
