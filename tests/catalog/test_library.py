"""The models folder: what is listed, found, refused and removed."""

import pytest

from server.catalog.catalogue_models import builtin_catalogue
from server.catalog.download_lock import exclusive, lock_path
from server.catalog.library import Library
from server.catalog.library_manifest import Manifest, ManifestFile, manifest_path, write_manifest
from server.core.errors import ConfigError, ModelFileError

CATALOGUE = builtin_catalogue()
QWEN = "Qwen/Qwen3-0.6B-GGUF"


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "models", CATALOGUE)


@pytest.fixture
def put(library):
    """Puts a model into the folder as a pull leaves it."""

    def place(name, repo, quant, *names, size=10, complete=True, requested=None, revision="c0ffee"):
        folder = library.models_dir / repo
        folder.mkdir(parents=True, exist_ok=True)
        for each in names:
            (folder / each).write_bytes(bytes(size))
        files = tuple(ManifestFile(each, size, "0" * 64) for each in names)
        manifest = Manifest(name, requested or name, repo, revision, quant, "mit", files, complete)
        write_manifest(folder / names[0], manifest)
        return folder / names[0]

    return place


def find(library, text):
    return library.find(CATALOGUE.parse(text))


def test_a_pulled_model_is_found_by_every_name_it_has(library, put) -> None:
    path = put("qwen3:0.6b-q8_0", QWEN, "Q8_0", "a-Q8_0.gguf")

    for text in ("qwen3:0.6b", "qwen3:0.6b-q8_0", f"hf:{QWEN}", f"hf:{QWEN}:Q8_0", str(path)):
        assert find(library, text) == path, text
    for text in ("qwen3:0.6b-q4_k_m", "qwen3:8b", f"hf:{QWEN}@main:Q8_0"):
        assert find(library, text) is None, text
    assert find(library, f"hf:{QWEN}@c0ffee:Q8_0") == path


def test_the_one_pulled_without_a_quantization_stays_the_default(library, put) -> None:
    small = put("qwen3:0.6b-q4_k_m", QWEN, "Q4_K_M", "a-Q4_K_M.gguf", requested="qwen3:0.6b")
    large = put("qwen3:0.6b-q8_0", QWEN, "Q8_0", "a-Q8_0.gguf", size=20)

    assert find(library, "qwen3:0.6b") == small
    assert find(library, f"hf:{QWEN}") == large


def test_what_is_not_complete_is_listed_and_never_found(library, put) -> None:
    path = put("qwen3:0.6b-q8_0", QWEN, "Q8_0", "a-Q8_0.gguf", complete=False)
    path.rename(path.with_name("a-Q8_0.gguf.aaaaaaaaaaaa.part"))

    assert find(library, "qwen3:0.6b") is None
    [entry] = library.entries()
    assert entry.problem == "not complete (100 % there); go on with: onegpu pull qwen3:0.6b-q8_0"


@pytest.mark.parametrize("what", ["incomplete", "grown", "shrunk", "part missing"])
def test_a_path_to_something_unsound_is_refused(library, put, what) -> None:
    names = ("s-Q8_0-00001-of-00002.gguf", "s-Q8_0-00002-of-00002.gguf")
    path = put("hf:o/r:Q8_0", "o/r", "Q8_0", *names, complete=what != "incomplete")
    second = path.with_name(names[1])
    if what == "grown":
        second.write_bytes(bytes(11))
    if what == "shrunk":
        second.write_bytes(bytes(9))
    if what == "part missing":
        second.unlink()

    with pytest.raises(ModelFileError, match="cannot be served"):
        find(library, str(path))
    assert find(library, "hf:o/r:Q8_0") is None


def test_a_split_model_put_there_by_hand_needs_all_parts(library) -> None:
    library.models_dir.mkdir()
    first = library.models_dir / "x-00001-of-00002.gguf"
    first.write_bytes(b"GGUF")

    with pytest.raises(ModelFileError, match=r"x-00002-of-00002\.gguf is missing"):
        find(library, str(first))
    first.with_name("x-00002-of-00002.gguf").write_bytes(b"GGUF")
    assert find(library, str(first)) == first


def test_a_file_put_there_by_hand_is_listed_with_its_quantization(library) -> None:
    library.models_dir.mkdir()
    path = library.models_dir / "mine-Q5_K_M.gguf"
    path.write_bytes(bytes(7))

    [entry] = library.entries()

    assert (entry.name, entry.quant, entry.size) == (str(path), "Q5_K_M", 7)
    assert (entry.source, entry.problem) == ("file", None)


def test_nothing_is_there_without_a_folder(library) -> None:
    assert library.entries() == []
    assert find(library, "qwen3:0.6b") is None


def test_removing_takes_parts_manifest_and_empty_folders(library, put) -> None:
    names = ("s-Q8_0-00001-of-00002.gguf", "s-Q8_0-00002-of-00002.gguf")
    path = put("hf:o/r:Q8_0", "o/r", "Q8_0", *names)
    path.with_name(f"{names[1]}.aaaaaaaaaaaa.part").write_bytes(bytes(5))
    other = put("hf:p/r:Q8_0", "p/r", "Q8_0", "b-Q8_0.gguf")
    [entry] = library.named("hf:o/r:Q8_0")

    assert library.remove(entry) == 25

    assert sorted(p.name for p in library.models_dir.rglob("*")) == sorted(
        ["p", "r", other.name, manifest_path(other).name]
    )


def test_removing_a_link_leaves_what_it_points_to(library, tmp_path) -> None:
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(bytes(7))
    library.models_dir.mkdir()
    link = library.models_dir / "link.gguf"
    link.symlink_to(outside)

    library.remove(library.named(str(link))[0])

    assert outside.exists()
    assert not link.is_symlink()


def test_a_model_on_its_way_is_not_removed(library, put) -> None:
    path = put("hf:o/r:Q8_0", "o/r", "Q8_0", "a-Q8_0.gguf", complete=False)

    [entry] = library.named("hf:o/r:Q8_0")

    assert "not complete" in (entry.problem or "")
    with exclusive(lock_path(path), waiting=lambda: None):
        assert library.entries()[0].problem == "being downloaded now (100 % there)"
        with pytest.raises(ConfigError, match="is being downloaded"):
            library.remove(entry)

    assert path.exists()


def test_a_name_may_mean_several(library, put) -> None:
    put("qwen3:0.6b-q4_k_m", QWEN, "Q4_K_M", "a-Q4_K_M.gguf")
    put("qwen3:0.6b-q8_0", QWEN, "Q8_0", "a-Q8_0.gguf")

    assert len(library.named("qwen3:0.6b")) == 2
    assert [entry.quant for entry in library.named("qwen3:0.6b-q8_0")] == ["Q8_0"]


@pytest.mark.parametrize("text", ["[]", '{"version": 99, "files": 3}'])
def test_a_document_of_somebody_else_is_no_manifest(library, text) -> None:
    library.models_dir.mkdir()
    path = library.models_dir / "a.gguf"
    path.write_bytes(b"GGUF")
    manifest_path(path).write_text(text, encoding="utf-8")

    assert [entry.source for entry in library.entries()] == ["file"]
    assert find(library, str(path)) == path


@pytest.mark.parametrize("damage", ["{", '{"version": 1}', "../../outside.gguf"])
def test_a_damaged_manifest_hides_no_other_model(library, put, damage) -> None:
    sound = put("qwen3:0.6b-q8_0", QWEN, "Q8_0", "a-Q8_0.gguf")
    path = put("hf:o/r:Q8_0", "o/r", "Q8_0", "b-Q8_0.gguf")
    note = manifest_path(path)
    text = note.read_text(encoding="utf-8").replace("b-Q8_0.gguf", damage)
    note.write_text(text if damage.endswith("gguf") else damage, encoding="utf-8")

    assert find(library, "qwen3:0.6b") == sound
    assert find(library, "hf:o/r:Q8_0") is None
    with pytest.raises(ModelFileError, match="Pull the model again"):
        find(library, str(path))
    [entry] = [entry for entry in library.entries() if entry.problem is not None]
    library.remove(entry)
    assert not path.exists()
    assert not note.exists()
    assert sound.exists()


def test_a_download_that_has_not_ended_is_not_served_by_its_path(library) -> None:
    library.models_dir.mkdir()
    part = library.models_dir / "m-Q8_0.gguf.0123456789ab.part"
    part.write_bytes(b"GGUF")

    with pytest.raises(ModelFileError, match="has not ended"):
        find(library, str(part))


def test_parts_without_a_first_one_are_listed_and_removed(library) -> None:
    library.models_dir.mkdir()
    for name in ("x-00002-of-00003.gguf", "x-00003-of-00003.gguf", "y-00001-of-00000.gguf"):
        (library.models_dir / name).write_bytes(b"GGUF")

    split, odd = library.entries()

    assert split.problem == "1 of 3 parts missing"
    assert odd.problem is None
    assert library.remove(split) == 8
    assert [path.name for path in library.models_dir.iterdir()] == ["y-00001-of-00000.gguf"]


def test_what_the_system_does_not_remove_is_said(library, put, monkeypatch) -> None:
    path = put("hf:o/r:Q8_0", "o/r", "Q8_0", "a-Q8_0.gguf")
    path.unlink()
    path.mkdir()
    [entry] = library.named("hf:o/r:Q8_0")

    with pytest.raises(ModelFileError, match=r"^hf:o/r:Q8_0 cannot be removed\. .*gguf: Is a dir"):
        library.remove(entry)


def test_files_that_vanish_while_they_are_listed_are_no_error(library, put, monkeypatch) -> None:
    """Another process renames a finished download, or removes it, at any time."""
    put("hf:o/r:Q8_0", "o/r", "Q8_0", "a-Q8_0.gguf", complete=False)
    monkeypatch.setattr(
        "server.catalog.library_entries.parts_of", lambda path: [path.with_name("gone.part")]
    )
    monkeypatch.setattr(
        "server.catalog.library_entries.manifest_path", lambda path: path.with_name("gone.json")
    )

    assert [entry.size for entry in library.entries()] == [10]


@pytest.mark.parametrize("damage", ['"size": "10"', '"name": ".."', '"name": ""'])
def test_a_manifest_that_names_no_file_is_damaged(library, put, damage) -> None:
    path = put("hf:o/r:Q8_0", "o/r", "Q8_0", "a-Q8_0.gguf")
    note = manifest_path(path)
    key = damage.split(":", maxsplit=1)[0]
    old = {'"size"': '"size": 10', '"name"': '"name": "a-Q8_0.gguf"'}[key]
    text = note.read_text(encoding="utf-8")
    assert old in text
    note.write_text(text.replace(old, damage), encoding="utf-8")

    [entry] = library.entries()

    assert entry.problem is not None
    assert "is damaged" in entry.problem
