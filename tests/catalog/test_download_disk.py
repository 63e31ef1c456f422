"""Disks that are full, limited or hold something else where a download belongs."""

import hashlib
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.catalog.download_transfer import Partial
from server.catalog.hub import Hub, HubOptions
from server.catalog.hub_errors import Backoff, HubError
from server.catalog.hub_files import HubFile
from tests.catalog.hub_downloads import Pulls, Told, blob
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


@contextmanager
def files_up_to(size: int):
    """The system refuses to make any file of this process larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_larger_than_the_system_allows_keeps_what_came(hub, pulls, folder) -> None:
    with (
        files_up_to(200_000),
        pytest.raises(HubError, match=r"takes no file of 300,000 bytes: .*ulimit -f"),
    ):
        pulls(REF)

    [part] = folder.glob("*.part")
    assert part.read_bytes() == blob(SIZE)[:200_000]
    assert pulls(REF).read_bytes() == blob(SIZE)
    assert hub.gets(NAME)[-1].range == "bytes=200000-"


def test_a_disk_that_fills_up_says_how_much_is_missing(hub, tmp_path) -> None:
    partial = Partial(tmp_path / NAME, HubFile(NAME, SIZE, hashlib.sha256(blob(SIZE)).hexdigest()))
    partial.path.symlink_to("/dev/full")

    def explain(error: Exception) -> HubError:
        raise AssertionError(error)

    with pytest.raises(
        HubError, match=r"is full: 300,000 bytes of .* are missing. Free some space"
    ):
        partial.fetch(
            Hub(HubOptions(endpoint=hub.endpoint)),
            "o/r",
            hub.repos["o/r"].commit,
            progress=Told(open=True),
            backoff=Backoff(1, sleep=[].append, say=[].append, explain=explain),
        )
    assert Path("/dev/full").exists()
