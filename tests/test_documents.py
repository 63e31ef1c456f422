"""Documents say what the code does."""

import re
from pathlib import Path

import yaml

import settings_table
from server.settings import Settings, load
from server.settings.fields import leaves

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "onegpu.example.yaml"


def test_the_example_is_the_defaults() -> None:
    # deterministic's checks look at what was written; the values themselves must be equal.
    example = load(EXAMPLE, environ={}).settings

    assert example.model_dump() == load(environ={}).settings.model_dump()


def test_the_example_has_every_setting_with_a_comment() -> None:
    loaded = load(EXAMPLE, environ={})
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()

    for path, _ in leaves(Settings):
        origin = loaded.origin(path)
        assert origin.kind == "file", path
        line = lines[int(origin.where.rpartition(":")[2]) - 1]
        assert re.search(r"\S  +# \S", line), line


def test_the_example_names_every_section_and_nothing_else() -> None:
    document = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))

    assert list(document) == list(Settings.model_fields)


def test_the_settings_table_is_up_to_date() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")

    assert written == settings_table.render(), "run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    for path, field in leaves(Settings):
        assert field.description, path
        assert len(field.description) <= 90, path


def test_locks_pin_with_hashes_and_name_no_registry() -> None:
    locks = sorted(ROOT.glob("requirements*.lock"))
    assert [lock.name for lock in locks] == [
        "requirements-build.lock",
        "requirements-dev.lock",
        "requirements.lock",
    ]
    for lock in locks:
        text = lock.read_text(encoding="utf-8")
        assert not re.search(r"https?://|file:|index-url|find-links|trusted-host", text), lock.name
        pins = re.split(r"\n(?=[a-z0-9])", text.split("make lock\n", 1)[1])
        for pin in pins:
            assert re.match(r"[a-z0-9.-]+==\S+", pin), pin
            assert "--hash=sha256:" in pin, pin


def test_the_make_targets_that_are_documented_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in ROOT.glob("*.md"):
        named = re.findall(r"`make ([a-z-]+)", document.read_text(encoding="utf-8"))
        assert set(named) <= targets, document.name
