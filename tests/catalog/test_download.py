"""Pulling against a hub on loopback: resumed, verified, never half."""

import json
import threading

import pytest

from server.catalog.download_choice import Chosen, by_size
from server.catalog.download_lock import exclusive, lock_path
from server.catalog.hub_errors import HubError
from server.catalog.hub_files import HubFile, Listing, candidates
from server.core.errors import ConfigError, ModelFileError
from tests.catalog.hub_downloads import Pulls, Told, blob, largest
from tests.catalog.hub_server import Hold, HubServer

NAME = "m-Q4_K_M.gguf"
REF = "hf:o/r:Q4_K_M"
SIZE = 300_000
PARTS = ("s-Q8_0-00001-of-00003.gguf", "s-Q8_0-00002-of-00003.gguf", "s-Q8_0-00003-of-00003.gguf")


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add("o/r", {NAME: blob(SIZE), "m-Q8_0.gguf": blob(SIZE * 2), "m-F16.gguf": blob(9)})
        yield server


def test_a_pull_leaves_the_file_and_its_manifest(hub, pulls, folder) -> None:
    path = pulls(REF)

    assert path == folder / NAME
    assert path.read_bytes() == blob(SIZE)
    assert sorted(p.name for p in folder.iterdir()) == [NAME, f"{NAME}.json"]
    manifest = json.loads((folder / f"{NAME}.json").read_text())
    assert manifest["complete"] is True
    assert manifest["revision"] == hub.repos["o/r"].commit
    assert manifest["files"] == [{"name": NAME, "size": SIZE, "sha256": hub.sha256("o/r", NAME)}]
    assert pulls.told.phases == [(NAME, SIZE, 0)]
    assert pulls.told.done == SIZE


def test_a_second_pull_downloads_nothing(hub, pulls) -> None:
    path = pulls(REF)
    hub.requests.clear()

    assert pulls(REF) == path
    assert hub.requests == []
    assert "is there" in pulls.told.text


def test_a_cut_connection_is_continued_where_it_broke(hub, pulls) -> None:
    hub.cut_after[NAME] = [100_000, 50_000]

    path = pulls(REF)

    assert path.read_bytes() == blob(SIZE)
    assert [r.range for r in hub.gets(NAME)] == [None, "bytes=100000-", "bytes=150000-"]
    assert hub.bytes_of(NAME) == SIZE
    assert pulls.told.text.count("the connection was cut; trying again in 1 s (1)") == 2
    # Something came each time, so the waits do not grow.
    assert pulls.waits == [1, 1]


def test_what_an_earlier_run_left_is_continued(hub, pulls, folder) -> None:
    hub.cut_after[NAME] = [120_000]

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    pulls.sleep = interrupted
    with pytest.raises(KeyboardInterrupt):
        pulls(REF)
    [part] = folder.glob("*.part")
    assert part.stat().st_size == 120_000
    assert not (folder / NAME).exists()
    assert pulls.find(REF) is None

    path = pulls(REF)

    assert path.read_bytes() == blob(SIZE)
    assert hub.gets(NAME)[-1].range == "bytes=120000-"
    assert hub.bytes_of(NAME) == SIZE
    assert pulls.told.phases == [("checking what is there", 120_000, 0), (NAME, SIZE, 120_000)]


def test_a_server_without_ranges_is_begun_again(hub, pulls) -> None:
    hub.cut_after[NAME] = [100_000]
    hub.ignore_ranges = True

    assert pulls(REF).read_bytes() == blob(SIZE)
    assert "beginning again" in pulls.told.text
    assert pulls.told.done == SIZE


def test_a_wrong_checksum_leaves_nothing(hub, pulls, folder) -> None:
    hub.wrong[NAME] = blob(SIZE, seed=1)

    with pytest.raises(ModelFileError, match=r"but the hub lists .* It was removed") as caught:
        pulls(REF)

    assert hub.sha256("o/r", NAME) in caught.value.message
    assert [p.name for p in folder.iterdir()] == [f"{NAME}.json"]
    assert pulls.find(REF) is None
    [entry] = pulls.library.entries()
    assert entry.problem is not None
    del hub.wrong[NAME]
    assert pulls(REF).read_bytes() == blob(SIZE)


def test_an_unsound_part_of_an_earlier_run_is_fetched_anew(hub, pulls, folder) -> None:
    folder.mkdir(parents=True)
    part = folder / f"{NAME}.{hub.sha256('o/r', NAME)[:12]}.part"
    part.write_bytes(bytes(1000))

    assert pulls(REF).read_bytes() == blob(SIZE)
    assert [r.range for r in hub.gets(NAME)] == ["bytes=1000-", None]
    assert "unsound" in pulls.told.text


def test_a_file_of_another_size_than_listed_is_refused(hub, pulls, folder) -> None:
    hub.wrong[NAME] = blob(SIZE + 5)

    with pytest.raises(HubError, match="has 300,005 bytes where it is served"):
        pulls(REF)

    assert not (folder / NAME).exists()


def test_a_part_of_another_version_is_not_continued(hub, pulls, folder) -> None:
    folder.mkdir(parents=True)
    stale = folder / f"{NAME}.aaaaaaaaaaaa.part"
    stale.write_bytes(bytes(1000))

    assert pulls(REF).read_bytes() == blob(SIZE)
    assert not stale.exists()
    assert [r.range for r in hub.gets(NAME)] == [None]


def test_a_process_killed_after_the_rename_only_hashes_again(hub, pulls, folder) -> None:
    pulls(REF)
    manifest = folder / f"{NAME}.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    assert pulls.find(REF) is None
    hub.requests.clear()

    assert pulls(REF).read_bytes() == blob(SIZE)
    assert hub.gets(NAME) == []


def test_a_damaged_manifest_is_written_anew(hub, pulls, folder) -> None:
    pulls(REF)
    (folder / f"{NAME}.json").write_text("{", encoding="utf-8")
    hub.requests.clear()

    assert pulls(REF).read_bytes() == blob(SIZE)
    assert hub.gets(NAME) == []
    assert pulls.find(REF) == folder / NAME


def test_a_file_that_changed_size_is_noticed_and_got_again(hub, pulls) -> None:
    path = pulls(REF)
    with path.open("ab") as file:
        file.write(b"x")

    assert pulls.find(REF) is None
    with pytest.raises(ModelFileError, match="not the size that was verified"):
        pulls.find(str(path))
    assert pulls(REF).read_bytes() == blob(SIZE)


def test_too_little_disk_is_said_before_anything_is_fetched(hub, pulls) -> None:
    pulls.free = SIZE

    with pytest.raises(HubError, match="has 300 kB free, and 300 kB are still to come"):
        pulls(REF)

    assert hub.gets(NAME) == []


def test_what_is_there_already_needs_no_room(hub, pulls, folder) -> None:
    folder.mkdir(parents=True)
    part = folder / f"{NAME}.{hub.sha256('o/r', NAME)[:12]}.part"
    part.write_bytes(blob(SIZE)[:-1000])
    pulls.free = (64 << 20) + 1000

    assert pulls(REF).read_bytes() == blob(SIZE)


def test_all_parts_of_a_split_model_come_under_one_progress(hub, pulls) -> None:
    datas = [blob(70_000, seed) for seed in range(3)]
    hub.add("o/split", dict(zip(PARTS, datas, strict=True)))
    hub.cut_after[PARTS[1]] = [10_000]

    path = pulls("hf:o/split:Q8_0")

    assert path.name == PARTS[0]
    assert [path.with_name(n).read_bytes() for n in PARTS] == datas
    assert pulls.told.phases == [(f"{PARTS[0]} and 2 more", 210_000, 0)]
    assert pulls.told.done == 210_000


def test_no_part_has_its_name_before_all_are_verified(hub, pulls, tmp_path) -> None:
    hub.add("o/split", {name: blob(70_000, i) for i, name in enumerate(PARTS)})
    hub.wrong[PARTS[2]] = blob(70_000, 9)

    with pytest.raises(ModelFileError, match=PARTS[2].replace(".", r"\.")):
        pulls("hf:o/split:Q8_0")

    split = tmp_path / "models" / "o" / "split"
    assert list(split.glob("*.gguf")) == []
    assert len(list(split.glob("*.part"))) == 2
    hub.wrong.clear()
    hub.requests.clear()
    assert pulls("hf:o/split:Q8_0").name == PARTS[0]
    assert hub.gets(PARTS[0]) == []


def test_two_pulls_of_one_file_download_it_once(hub, pulls, tmp_path) -> None:
    hold = hub.hold[NAME] = Hold(after=100_000)
    results = []

    class LetGo(Told):
        """Lets the held server go on once the second pull waits."""

        def say(self, text: str) -> None:
            super().say(text)
            if "another process" in text:
                hold.release.set()

    first = threading.Thread(target=lambda: results.append(pulls(REF)))
    first.start()
    assert hold.reached.wait(30)
    told = LetGo()
    results.append(Pulls(hub, tmp_path / "models")(REF, told=told))
    first.join(30)

    assert "another process" in told.text
    assert told.phases == []
    assert results[0] == results[1]
    assert results[0].read_bytes() == blob(SIZE)
    assert hub.bytes_of(NAME) == SIZE
    assert len(hub.gets(NAME)) == 1


def test_a_lock_is_not_shared_by_its_vanished_name(tmp_path) -> None:
    path = lock_path(tmp_path / "m.gguf")
    order: list[str] = []
    named: list[bool] = []
    entered, go = threading.Event(), threading.Event()

    def other() -> None:
        with exclusive(path, waiting=entered.set):
            order.append("second")
            # A third one that comes now must meet this lock, not make a new one.
            named.append(path.exists())

    with exclusive(path, waiting=go.set):
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(30)
        order.append("first")
    thread.join(30)

    assert order == ["first", "second"]
    assert named == [True]
    assert not path.exists()
    assert not go.is_set()


def test_without_a_quantization_the_chooser_decides_and_says_why(hub, pulls) -> None:
    offered: list[str] = []

    def chooser(found):
        offered.extend(candidate.quant for candidate in found)
        return Chosen(found[1], "Q4_K_M is the largest that fits")

    path = pulls("hf:o/r", chooser=chooser)

    assert offered == ["Q8_0", "Q4_K_M", "F16"]
    assert path.name == NAME
    assert "Q4_K_M is the largest that fits" in pulls.told.text
    assert pulls("hf:o/r") == path


def test_a_begun_choice_is_not_chosen_anew(hub, pulls, folder) -> None:
    hub.failures[NAME] = [(404, {"X-Error-Code": "EntryNotFound"})]
    with pytest.raises(HubError):
        pulls("hf:o/r", chooser=lambda found: Chosen(found[1], "fits today"))

    path = pulls("hf:o/r", chooser=largest)

    assert path.name == NAME
    assert "going on with Q4_K_M" in pulls.told.text


def test_when_nothing_fits_nothing_is_downloaded(hub, pulls) -> None:
    with pytest.raises(ModelFileError, match=r"Name the quantization .* hf:o/r:Q4_K_M"):
        pulls("hf:o/r", chooser=by_size(1000, "1 kB of memory"))

    assert hub.gets(NAME) == []


def test_a_catalogue_model_that_does_not_fit_is_sought_in_the_other_repository(hub, pulls) -> None:
    hub.add("Qwen/Qwen3-0.6B-GGUF", {"Qwen3-0.6B-Q8_0.gguf": blob(2_000)})
    hub.add("unsloth/Qwen3-0.6B-GGUF", {"Qwen3-0.6B-Q4_K_M.gguf": blob(1_000)})
    chooser = by_size((1 << 29) + 1500, "the card")

    path = pulls("qwen3:0.6b", chooser=chooser)

    assert path.name == "Qwen3-0.6B-Q4_K_M.gguf"
    assert pulls.library.entries()[0].name == "qwen3:0.6b-q4_k_m"


def test_the_rule_of_thumb_takes_the_largest_quantized_one() -> None:
    files = [("m-F16.gguf", 16), ("m-Q8_0.gguf", 8), ("m-Q4_K_M.gguf", 5), ("m-Q2_K.gguf", 3)]
    listed = Listing("o/r", "c", tuple(HubFile(n, s * 10**9, "0" * 64) for n, s in files))
    found = candidates(listed)

    def choice(gigabytes: float) -> tuple[str, bool]:
        chosen = by_size(int(gigabytes * 10**9), "memory")(found)
        return chosen.candidate.quant, chosen.fits

    assert choice(80) == ("Q8_0", True)
    assert choice(9.3) == ("Q4_K_M", True)
    assert choice(4) == ("Q2_K", True)
    assert choice(3.5) == ("Q2_K", False)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("hf:o/r:Q3_K_M", ConfigError, r"has no Q3_K_M. It has Q8_0 \(600 kB\), Q4_K_M"),
        ("hf:o/r/m-Q4_K.gguf", ConfigError, r"has no file m-Q4_K.gguf; did you mean m-Q4_K_M.gguf"),
        ("hf:o/safe:Q8_0", ModelFileError, "has no GGUF files; it has safetensors weights"),
        ("hf:o/safe", ModelFileError, "such as o/safe-GGUF"),
        ("hf:o/two:Q8_0", ConfigError, "has several files of Q8_0. Name one: hf:o/two/a-Q8_0.gguf"),
        ("missing.gguf", ConfigError, "does not exist, and a path is not pulled.$"),
        ("o/r:Q4_K_M", ConfigError, "write hf:o/r:Q4_K_M$"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(hub, pulls, text, error, message) -> None:
    hub.add("o/safe", {"model.safetensors": b"x", "config.json": b"{}"})
    hub.add("o/two", {"a-Q8_0.gguf": b"a", "b-Q8_0.gguf": b"b"})

    with pytest.raises(error, match=message):
        pulls(text)


def test_one_file_may_be_named(hub, pulls) -> None:
    hub.add("o/two", {"a-Q8_0.gguf": b"a", "b-Q8_0.gguf": b"b"})

    assert pulls("hf:o/two/b-Q8_0.gguf").read_bytes() == b"b"
    assert pulls.find("hf:o/two/b-Q8_0.gguf") is not None
    assert pulls.find("hf:o/two/a-Q8_0.gguf") is None


def test_a_file_without_a_checksum_is_refused(hub, pulls, monkeypatch) -> None:
    monkeypatch.setattr("tests.catalog.hub_server._LFS", ())

    with pytest.raises(ModelFileError, match="gives no SHA-256"):
        pulls(REF)


def test_a_folder_that_cannot_be_written_is_named(hub, pulls) -> None:
    pulls.library.models_dir.write_bytes(b"a file, where a folder belongs")

    with pytest.raises(HubError, match=r"models/o/r cannot be written: Not a directory"):
        pulls(REF)
