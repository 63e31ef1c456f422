"""Repositories whose files are named in odd ways."""

import pytest

from server.catalog.download_choice import Chosen
from server.catalog.hub_errors import HubError
from server.core.errors import ConfigError, ModelFileError
from tests.catalog.hub_downloads import largest
from tests.catalog.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("tests.catalog.hub_server._LFS", (".gguf", ".GGUF"))
    with HubServer() as server:
        yield server


def smallest(found):
    return Chosen(found[-1], "small")


def test_files_of_one_name_in_several_folders_are_several_models(hub, pulls) -> None:
    hub.add("o/r", {"Q4/model.gguf": b"four", "Q8/model.gguf": b"eight"})

    assert pulls("hf:o/r/Q4/model.gguf").read_bytes() == b"four"
    assert pulls.find("hf:o/r/Q8/model.gguf") is None
    assert pulls("hf:o/r/Q8/model.gguf").read_bytes() == b"eight"
    assert pulls("hf:o/r/Q4/model.gguf").read_bytes() == b"four"


def test_any_part_of_a_split_model_means_all_of_it(hub, pulls) -> None:
    parts = {f"Q8_0/s-0000{i}-of-00002.gguf": b"%d" % i for i in (1, 2)}
    hub.add("o/r", parts)

    path = pulls("hf:o/r/Q8_0/s-00002-of-00002.gguf")

    assert path.name == "s-00001-of-00002.gguf"
    assert pulls.find("hf:o/r/Q8_0/s-00002-of-00002.gguf") == path


def test_a_model_split_in_two_ways_is_two_models(hub, pulls) -> None:
    names = [f"s-Q8_0-0000{i}-of-0000{n}.gguf" for n in (2, 3) for i in range(1, n + 1)]
    hub.add("o/r", dict.fromkeys(names, b"x"))

    path = pulls("hf:o/r", chooser=smallest)

    assert sorted(p.name for p in path.parent.glob("*.gguf")) == names[:2]


def test_what_was_asked_for_in_short_is_found_so_again(hub, pulls) -> None:
    hub.add("o/r", {"m-UD-Q4_K_XL.gguf": b"x"})
    path = pulls("hf:o/r:q4_k_xl")

    assert pulls("hf:o/r:Q4_K_XL", offline=True) == path
    assert pulls("hf:o/r:UD-Q4_K_XL", offline=True) == path


def test_a_suffix_in_capitals_is_a_suffix(hub, pulls) -> None:
    hub.add("o/r", {"m-Q8_0.GGUF": b"x"})

    path = pulls("hf:o/r:Q8_0")

    assert pulls.find("hf:o/r:Q8_0") == pulls.find("hf:o/r/m-Q8_0.GGUF") == path
    assert [entry.path for entry in pulls.library.entries()] == [path]


@pytest.mark.parametrize(
    "name", ["a b-Q8_0.gguf", "a%20b+c#d-Q8_0.gguf", "\u91cf-Q8_0.gguf", "a'$(x)-Q8_0.gguf"]
)
def test_odd_letters_in_a_name_are_kept(hub, pulls, name) -> None:
    hub.add("o/r", {name: b"x"})

    assert pulls("hf:o/r:Q8_0").name == name
    assert pulls.find(f"hf:o/r/{name}") is not None


def test_the_choice_between_two_of_one_quantization_is_kept_by_its_file(hub, pulls) -> None:
    hub.add("o/r", {"a-Q8_0.gguf": b"aa", "b-Q8_0.gguf": b"b"})
    hub.failures["a-Q8_0.gguf"] = [(404, {"X-Error-Code": "EntryNotFound"})]
    with pytest.raises(HubError):
        pulls("hf:o/r", chooser=largest)

    path = pulls("hf:o/r", chooser=smallest)

    assert path.read_bytes() == b"aa"
    [entry] = pulls.library.entries()
    assert entry.name == "hf:o/r/a-Q8_0.gguf"
    assert pulls.find(entry.name) == path
    assert pulls("hf:o/r/b-Q8_0.gguf").read_bytes() == b"b"


def test_a_begun_file_that_the_hub_lost_is_chosen_anew(hub, pulls) -> None:
    hub.add("o/r", {"a-Q8_0.gguf": b"aa", "a-Q4_0.gguf": b"b"})
    hub.failures["a-Q8_0.gguf"] = [(404, {"X-Error-Code": "EntryNotFound"})]
    with pytest.raises(HubError):
        pulls("hf:o/r", chooser=largest)
    hub.add("o/r", {"a-Q4_0.gguf": b"b"})

    assert pulls("hf:o/r", chooser=largest).read_bytes() == b"b"
    assert "o/r has it no more" in pulls.told.text


def test_what_lies_beside_a_model_is_not_chosen(hub, pulls) -> None:
    beside = ("tokenizer.gguf", "x-lora-F16.gguf", "x-draft-Q4_0.gguf", "vocab/ggml-vocab-x.gguf")
    files = {"x-Q8_0.gguf": b"model", "mmproj/x-F16.gguf": b"p", "x.imatrix.gguf": b"i"}
    hub.add("o/r", {**files, **dict.fromkeys(beside, b"b")})

    assert pulls("hf:o/r", chooser=smallest).read_bytes() == b"model"
    # By its name anything may be had, for an ADAPTER say.
    assert pulls("hf:o/r/x-lora-F16.gguf").read_bytes() == b"b"


def test_a_model_whose_name_tells_of_an_adapter_is_one_where_it_is_alone(hub, pulls) -> None:
    hub.add("o/r", {"merged-lora-Q8_0.gguf": b"x"})

    assert pulls("hf:o/r", chooser=largest).read_bytes() == b"x"


def test_an_upload_that_lacks_parts_is_not_chosen(hub, pulls) -> None:
    hub.add("o/r", {"m-Q8_0-00001-of-00002.gguf": b"large", "m-Q4_0.gguf": b"s"})

    assert pulls("hf:o/r", chooser=largest).read_bytes() == b"s"
    with pytest.raises(ModelFileError, match="upload is not complete"):
        pulls("hf:o/r:Q8_0")


def test_a_second_choice_that_is_not_there_is_no_news(hub, pulls) -> None:
    hub.add("Qwen/Qwen3-0.6B-GGUF", {"q-Q8_0.gguf": b"x"})

    with pytest.raises(ConfigError, match=r"has no Q3_K_M. It has Q8_0"):
        pulls("qwen3:0.6b-q3_k_m")
    with pytest.raises(ModelFileError, match=r"Nothing of qwen3:0\.6b fits"):
        pulls("qwen3:0.6b", chooser=lambda found: Chosen(found[0], "too large", fits=False))


def test_revisions_lie_beside_each_other(hub, pulls) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": b"old"})
    hub.repos["o/r"].revisions.add("v1")
    old = pulls("hf:o/r@v1:Q8_0")
    assert pulls.find("hf:o/r:Q8_0") is None
    hub.add("o/r", {"m-Q8_0.gguf": b"new"})

    new = pulls("hf:o/r:Q8_0")

    assert (old.read_bytes(), new.read_bytes()) == (b"old", b"new")
    assert pulls("hf:o/r@v1:Q8_0", offline=True) == old
    assert pulls.find("hf:o/r@v1/m-Q8_0.gguf") == old
    assert pulls.find(f"hf:o/r@{hub.repos['o/r'].commit[:7]}:Q8_0") == new
    assert [e.name for e in pulls.library.entries()] == ["hf:o/r:Q8_0", "hf:o/r@v1:Q8_0"]
