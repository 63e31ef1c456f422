"""Servers and mirrors that say one thing and do another."""

import pytest

from server.catalog.hub_errors import HubError
from tests.catalog.hub_downloads import Pulls, blob
from tests.catalog.hub_server import HubServer

NAME = "m-Q4_K_M.gguf"
REF = "hf:o/r:Q4_K_M"
SIZE = 300_000


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add("o/r", {NAME: blob(SIZE)})
        yield server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models" / "o" / "r"


@pytest.fixture
def pulls(hub, tmp_path):
    return Pulls(hub, tmp_path / "models")


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
