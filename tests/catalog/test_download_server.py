"""Servers and mirrors that say one thing and do another."""

import pytest

from server.catalog.hub import Hub, HubOptions
from server.catalog.hub_errors import HubError
from tests.catalog.hub_downloads import blob
from tests.catalog.hub_server import HubServer

NAME = "m-Q4_K_M.gguf"
REF = "hf:o/r:Q4_K_M"
SIZE = 300_000


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add("o/r", {NAME: blob(SIZE)})
        yield server


def test_a_range_that_begins_elsewhere_is_not_taken(hub, pulls, folder) -> None:
    hub.cut_after[NAME] = [100_000]
    hub.shift[NAME] = 7

    with pytest.raises(HubError, match="from byte 100,000 on and sends it from byte 100,007 on"):
        pulls(REF)

    [part] = folder.glob("*.part")
    assert part.read_bytes() == blob(SIZE)[:100_000]


def test_a_server_without_ranges_that_always_cuts_is_given_up(hub, pulls) -> None:
    hub.ignore_ranges = True
    hub.cut_after[NAME] = [100_000] * 20

    with pytest.raises(HubError, match="the connection was cut"):
        pulls(REF)

    assert len(hub.gets(NAME)) == 6


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"lfs": {"sha256": "../../../../x", "size": 3, "pointerSize": 1}}, r"SHA-256 '\.\./"),
        ({"size": -1}, "a size of -1"),
        ({"size": "12"}, "a size of '12'"),
        ({"rfilename": "a\x1b]0;title\x07-Q8_0.gguf"}, "an unsafe name: 'a.x1b]"),
    ],
)
def test_a_listing_that_cannot_be_is_refused(hub, pulls, tmp_path, said, message) -> None:
    hub.entries[NAME] = said

    with pytest.raises(HubError, match=message):
        pulls(REF)

    assert not (tmp_path / "models").exists()


def test_a_size_that_no_disk_has_is_refused_before_anything_is_fetched(hub, pulls) -> None:
    hub.entries[NAME] = {"size": 10**18}

    with pytest.raises(HubError, match="1000000000 GB are still to come"):
        pulls(REF)

    assert hub.gets(NAME) == []


def test_a_checksum_in_capitals_is_the_same(hub, pulls) -> None:
    digest = hub.sha256("o/r", NAME).upper()
    hub.entries[NAME] = {"lfs": {"sha256": digest, "size": SIZE, "pointerSize": 134}}

    assert pulls(REF).read_bytes() == blob(SIZE)


@pytest.mark.parametrize("token", ["hf_s\u00fccret", "hf_secret x", "hf_secret\nx"])
def test_a_token_that_cannot_be_one_is_refused_without_showing_it(pulls, token) -> None:
    with pytest.raises(HubError, match=r"Check hub\.token") as caught:
        pulls(REF, token=token)

    assert "cret" not in caught.value.message


def test_a_repository_that_moved_is_followed(hub, pulls) -> None:
    hub.moved["old/r"] = f"{hub.endpoint}/api/models/o/r?blobs=true"

    with pytest.raises(HubError):  # /resolve/ is sent to the same address, where no file is
        pulls("hf:old/r:Q4_K_M")

    assert hub.requests[1].path == "/api/models/o/r"


def test_a_token_is_not_sent_to_where_the_api_redirects(hub, pulls) -> None:
    hub.moved["o/r"] = f"{hub.cdn}/cdn/{NAME}?repo=o/r"

    with pytest.raises(HubError, match="does not answer as a model hub"):
        pulls(REF, token="hf_secret")

    assert [(r.path, r.token) for r in hub.requests] == [
        ("/api/models/o/r", "hf_secret"),
        (f"/cdn/{NAME}", None),
    ]


def test_redirects_in_a_circle_are_ended(hub, pulls) -> None:
    hub.moved["o/r"] = f"{hub.endpoint}/api/models/o/r"

    with pytest.raises(HubError, match=r"exceeded maximum allowed redirects\. Check"):
        pulls(REF)


def test_a_range_that_begins_later_is_not_read(hub) -> None:
    hub.shift[NAME] = 7

    with pytest.raises(HubError, match="from byte 100 on and sends it from byte 107 on"):
        Hub(HubOptions(endpoint=hub.endpoint)).read("o/r", NAME, start=100, end=200)
