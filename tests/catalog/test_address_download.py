"""Adapters from any server: held to a pin, or to what came first, and never anything but an adapter."""

import hashlib
import json
from pathlib import Path

import pytest

from server.catalog.address import parse_address
from server.catalog.address_download import pull_adapter
from server.catalog.catalogue_models import builtin_catalogue
from server.catalog.download_files import Machine
from server.catalog.hub_errors import HubError
from server.catalog.library import Library
from server.core.errors import ModelFileError
from tests.adapters import AdapterSpec, write_adapter
from tests.catalog.conftest import gguf
from tests.catalog.hub_downloads import PLENTY, Told
from tests.catalog.hub_server import HubServer
from tests.models import ModelSpec

NAME = "a-lora.gguf"
ETAG = {"ETag": '"one"'}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[bytes, bytes]:
    """Two sound adapters of one length."""
    folder = tmp_path_factory.mktemp("adapters")
    first, second = (
        write_adapter(folder / f"{seed}.gguf", AdapterSpec(seed=seed), ModelSpec()).read_bytes()
        for seed in (1, 2)
    )
    assert len(first) == len(second)
    assert first != second
    return first, second


@pytest.fixture
def hub(adapters):
    with HubServer() as server:
        server.add("o/r", {NAME: adapters[0]})
        yield server


class Pulls:
    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.address = f"{hub.endpoint}/o/r/resolve/main/{NAME}"
        self.folder = folder
        self.waits: list[float] = []
        self.sleep = self.waits.append
        self.told = Told()
        self.free = PLENTY

    def __call__(self, pin: str = "", *, at: str | None = None, offline: bool = False) -> Path:
        self.told = Told()
        address = parse_address(f"{at or self.address}{f'#sha256={pin}' if pin else ''}")
        assert address is not None
        machine = Machine(free_bytes=lambda _: self.free, sleep=self.sleep)
        return pull_adapter(
            address, self.folder, progress=self.told, offline=offline, machine=machine
        )

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def pulls(hub, tmp_path) -> Pulls:
    return Pulls(hub, tmp_path / "models")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def interrupted(_: float) -> None:
    raise KeyboardInterrupt


def test_without_a_pin_the_checksum_is_kept_and_told_with_the_advice_to_pin_it(
    hub, pulls, adapters
) -> None:
    path = pulls()

    assert path.read_bytes() == adapters[0]
    assert pulls.files() == [NAME, f"{NAME}.json"]
    manifest = json.loads(path.with_name(f"{NAME}.json").read_text())
    assert manifest["complete"] is True
    assert manifest["files"][0]["sha256"] == sha256(adapters[0])
    assert f"ADAPTER {pulls.address}#sha256={sha256(adapters[0])}" in pulls.told.text
    assert "verified" not in pulls.told.text
    assert {request.token for request in hub.requests} == {None}


def test_a_pinned_file_is_verified(pulls, adapters) -> None:
    path = pulls(sha256(adapters[0]))

    assert path.read_bytes() == adapters[0]
    assert f"verified SHA-256 {sha256(adapters[0])[:12]}" in pulls.told.text
    assert "pin it" not in pulls.told.text


def test_another_file_than_the_pinned_one_leaves_nothing(hub, pulls, adapters) -> None:
    hub.wrong[NAME] = adapters[1]

    with pytest.raises(ModelFileError, match=r"but the address pins .* It was removed") as caught:
        pulls(sha256(adapters[0]))

    assert sha256(adapters[1]) in caught.value.message
    assert pulls.files() == [f"{NAME}.json"]


def test_what_is_here_is_used_without_asking_whatever_is_there_now(hub, pulls, adapters) -> None:
    path = pulls()
    hub.wrong[NAME] = adapters[1]
    hub.requests.clear()

    assert pulls(offline=True) == path
    assert path.read_bytes() == adapters[0]
    assert hub.requests == []
    assert "is there" in pulls.told.text


def test_a_damaged_file_is_replaced_by_the_same_one_only(hub, pulls, adapters) -> None:
    path = pulls()
    path.write_bytes(b"GGUF")
    hub.wrong[NAME] = adapters[1]

    with pytest.raises(ModelFileError, match=r"but its first download had .* pin it"):
        pulls()

    assert pulls.files() == [NAME, f"{NAME}.json"]
    hub.wrong.clear()
    assert pulls().read_bytes() == adapters[0]


def test_a_new_pin_gets_the_new_file_beside_the_old_one(hub, pulls, adapters) -> None:
    old = pulls()
    hub.wrong[NAME] = adapters[1]

    new = pulls(sha256(adapters[1]))

    assert (old.read_bytes(), new.read_bytes()) == adapters


@pytest.mark.parametrize("pinned", [True, False])
def test_what_an_earlier_run_left_is_continued(hub, pulls, adapters, pinned) -> None:
    hub.headers[NAME] = ETAG
    # The first answer is the header's, the second the file's.
    hub.cut_after[NAME] = [len(adapters[0]) + 1, 5_000]
    pulls.sleep = interrupted
    pin = sha256(adapters[0]) if pinned else ""
    with pytest.raises(KeyboardInterrupt):
        pulls(pin)
    [part] = pulls.folder.rglob("*.part")
    assert part.stat().st_size == 5_000

    assert pulls(pin).read_bytes() == adapters[0]

    assert hub.gets(NAME)[-1].range == "bytes=5000-"
    assert ("checking what is there", 5_000, 0) in pulls.told.phases
    assert pulls.files() == [NAME, f"{NAME}.json"]


@pytest.mark.parametrize(
    ("before", "after"),
    [(ETAG, {"ETag": '"two"'}), (ETAG, {}), ({}, {}), ({"ETag": 'W/"one"'}, {"ETag": 'W/"one"'})],
)
def test_bytes_of_two_versions_never_meet(hub, pulls, adapters, before, after) -> None:
    hub.headers[NAME] = before
    hub.cut_after[NAME] = [len(adapters[0]) + 1, 5_000]
    pulls.sleep = interrupted
    with pytest.raises(KeyboardInterrupt):
        pulls()
    hub.wrong[NAME], hub.headers[NAME] = adapters[1], after

    assert pulls().read_bytes() == adapters[1]

    assert hub.gets(NAME)[-1].range is None
    assert "127.0.0.1" in pulls.told.text
    assert "has a newer file; dropping" in pulls.told.text


def test_a_file_that_changes_between_two_connections_is_not_mixed(hub, pulls, adapters) -> None:
    hub.headers[NAME] = ETAG
    hub.cut_after[NAME] = [len(adapters[0]) + 1, 5_000]

    def changed(_: float) -> None:
        hub.wrong[NAME], hub.headers[NAME] = adapters[1], {"ETag": '"two"'}

    pulls.sleep = changed
    with pytest.raises(HubError, match="changed while it was downloaded"):
        pulls()

    assert NAME not in pulls.files()


def test_a_server_that_tells_no_version_is_asked_from_the_start_after_a_cut(
    hub, pulls, adapters
) -> None:
    hub.cut_after[NAME] = [len(adapters[0]) + 1, 5_000]

    assert pulls().read_bytes() == adapters[0]

    assert [request.range for request in hub.gets(NAME)][1:] == [None, None]
    assert "beginning again" in pulls.told.text


def test_a_server_without_ranges_serves_too(hub, pulls, adapters) -> None:
    hub.ignore_ranges = True

    assert pulls().read_bytes() == adapters[0]


def test_an_adapter_that_ends_before_its_announced_length_is_not_taken(
    hub, pulls, adapters
) -> None:
    hub.cut_after[NAME] = [len(adapters[0]) + 1] + [5_000] * 20
    hub.ignore_ranges = True

    with pytest.raises(HubError, match="the connection was cut"):
        pulls()

    assert NAME not in pulls.files()


def test_a_file_of_unknown_length_is_refused(hub, pulls) -> None:
    hub.unsized.add(NAME)
    hub.ignore_ranges = True

    with pytest.raises(HubError, match="does not say how long"):
        pulls()

    assert pulls.files() == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gguf(), r"is a whole model \(qwen3\), not a LoRA adapter: download it and use FROM"),
        (b"\x80\x02 pickled", "is not a GGUF"),
        (None, "is cut short where it is served: 1,000 bytes"),
    ],
)
def test_what_is_no_adapter_is_told_before_it_is_downloaded(
    hub, pulls, adapters, data, message
) -> None:
    hub.wrong[NAME] = adapters[0][:-1000] if data is None else data

    with pytest.raises(ModelFileError, match=message):
        pulls()

    assert len(hub.gets(NAME)) == 1
    assert pulls.files() == []


def test_a_web_page_is_told_as_one(hub, pulls) -> None:
    hub.headers[NAME] = {"Content-Type": "text/html; charset=utf-8"}

    with pytest.raises(ModelFileError, match="is a web page, not a file"):
        pulls()


@pytest.mark.parametrize("to", ["http://x.test/a.gguf", "ftp://127.0.0.1/a.gguf"])
def test_a_redirect_that_leaves_https_is_not_followed(hub, pulls, to) -> None:
    hub.failures[NAME] = [(302, {"Location": to})]

    with pytest.raises(
        HubError, match=rf"redirects to {to.removesuffix('/a.gguf')}, but only https"
    ):
        pulls()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, r"127\.0\.0\.1:\d+ refuses .* it gets no token"),
        (404, r"has no http.*status 404\)\. Check the address"),
        (418, r"answered 418 .* try again later"),
    ],
)
def test_a_refusal_is_told_with_what_to_do(hub, pulls, status, message) -> None:
    hub.failures[NAME] = [(status, {})]

    with pytest.raises(HubError, match=message):
        pulls()

    assert pulls.files() == []


def test_a_server_in_trouble_is_asked_again_when_it_says(hub, pulls, adapters) -> None:
    hub.failures[NAME] = [(503, {"Retry-After": "7"})]

    assert pulls().read_bytes() == adapters[0]
    assert pulls.waits == [7]


def test_a_secret_in_the_query_is_neither_told_nor_kept(hub, pulls, adapters) -> None:
    path = pulls(at=f"{hub.cdn}/cdn/{NAME}?repo=o/r&key=hidden")

    assert path.read_bytes() == adapters[0]
    kept = path.with_name(f"{NAME}.json").read_text()
    assert "hidden" not in f"{path}{pulls.told.text}{pulls.told.phases}{kept}"


def test_offline_nothing_is_asked(hub, pulls) -> None:
    with pytest.raises(HubError, match="offline mode forbids"):
        pulls(offline=True)

    assert hub.requests == []


def test_too_little_disk_is_said_before_anything_is_fetched(hub, pulls) -> None:
    pulls.free = 1000

    with pytest.raises(HubError, match="has 1 kB free"):
        pulls()

    assert len(hub.gets(NAME)) == 1


def test_adapters_are_listed_and_removed_like_models(pulls) -> None:
    path = pulls()
    library = Library(pulls.folder, builtin_catalogue())

    [entry] = library.entries()

    assert (entry.name, entry.quant, entry.problem) == (pulls.address, "LoRA", None)
    assert library.named(pulls.address) == [entry]
    library.remove(entry)
    assert not path.exists()
    assert list(pulls.folder.iterdir()) == []
