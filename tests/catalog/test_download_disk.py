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
from tests.catalog.hub_downloads import Told, blob
from tests.catalog.hub_server import HubServer

NAME = "m-Q4_K_M.gguf"
REF = "hf:o/r:Q4_K_M"
SIZE = 300_000


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add("o/r", {NAME: blob(SIZE)})
        yield server


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
            lambda _: Hub(HubOptions(endpoint=hub.endpoint)).body("o/r", "main", NAME),
            progress=Told(open=True),
            backoff=Backoff(1, sleep=[].append, say=[].append, explain=explain),
        )
    assert Path("/dev/full").exists()


def test_too_little_disk_leaves_what_is_there_as_it_is(hub, pulls, folder) -> None:
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(b"mine")
    pulls.free = SIZE

    with pytest.raises(HubError, match="are still to come"):
        pulls(REF)

    assert [(entry.source, entry.problem) for entry in pulls.library.entries()] == [("file", None)]


def test_a_file_of_somebody_else_in_the_place_is_told_of(hub, pulls, folder) -> None:
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(b"mine")

    assert pulls(REF).read_bytes() == blob(SIZE)
    assert f"{folder / NAME} is not the hub's; it will be replaced" in pulls.told.text


def test_a_link_in_the_place_is_replaced_and_its_file_left(hub, pulls, folder, tmp_path) -> None:
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(bytes(SIZE))
    folder.mkdir(parents=True)
    (folder / NAME).symlink_to(outside)

    path = pulls(REF)

    assert path.read_bytes() == blob(SIZE)
    assert not path.is_symlink()
    assert outside.read_bytes() == bytes(SIZE)


def test_a_folder_on_another_disk_may_be_linked(hub, pulls, tmp_path) -> None:
    other = tmp_path / "other disk"
    other.mkdir()
    pulls.library.models_dir.mkdir()
    (pulls.library.models_dir / "o").symlink_to(other)
    (other / "circle").symlink_to(other)

    path = pulls(REF)

    assert pulls.find(REF) == path
    assert [entry.problem for entry in pulls.library.entries()] == [None]
