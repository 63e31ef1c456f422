"""What the server sees of the keys while others write, remove and damage the file."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from server.core.errors import ConfigError
from server.store.connection import FILE, open_database
from server.store.key_view import KeyView
from server.store.keys import ApiKey, KeyRepository
from server.store.refusals import StoreError


@pytest.fixture
def view(tmp_path):
    opened = KeyView(tmp_path)
    yield opened
    opened.close()


def write(directory: Path, *names: str) -> list[ApiKey]:
    with open_database(directory) as database:
        return [KeyRepository(database).create(name, 0).key for name in names]


def seen(view: KeyView, key: ApiKey) -> ApiKey | None:
    found = view.find(key.id)
    return None if found is None else found.key


def test_without_a_file_there_are_no_keys_and_none_is_made(view, tmp_path) -> None:
    assert view.empty()
    assert view.find("0123456789") is None
    assert list(tmp_path.iterdir()) == []
    assert KeyView(tmp_path / "none" / "such").empty()
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert KeyView(tmp_path / "file").empty()


def test_every_change_of_another_process_is_seen_at_the_next_look(view, tmp_path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from server.store.connection import open_database\n"
        "from server.store.keys import KeyRepository\n"
        "with open_database(Path(sys.argv[1])) as database:\n"
        "    print(KeyRepository(database).create('other', 0).key.id)"
    )
    assert view.empty()
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert not view.empty()
    found = view.find(ended.stdout.strip())
    assert found is not None
    assert found.key.name == "other"


def test_changes_are_seen_whoever_holds_the_file_open(view, tmp_path, keys) -> None:
    new = keys.create("a", 0)
    assert seen(view, new.key) == new.key
    keys.revoke(["a"], 5)
    assert seen(view, new.key).revoked == 5
    other = keys.create("b", 0)
    stored = view.find(other.key.id)
    assert stored.matches(other.secret, 0)
    rotated = keys.rotate("b", 0)
    stored = view.find(other.key.id)
    assert stored.matches(rotated.secret, 0)
    assert not stored.matches(other.secret, 0)


def test_a_file_without_keys_is_empty_until_the_first(view, tmp_path, keys) -> None:
    assert view.empty()
    keys.create("a", 0)
    assert not view.empty()
    keys.revoke(["a"], 1)
    # Revoked keys are keys: ending all of them must not open the doors.
    assert not view.empty()


def test_keys_in_use_go_on_while_the_file_is_gone_and_no_others(view, tmp_path, caplog) -> None:
    used, unused = write(tmp_path, "used", "unused")
    assert seen(view, used) == used
    for path in tmp_path.iterdir():
        path.unlink()

    for _ in range(3):
        assert seen(view, used) == used
        with pytest.raises(StoreError, match="its log says why") as refusal:
            view.find(unused.id)
        assert str(tmp_path) not in refusal.value.message
        with pytest.raises(StoreError):
            view.empty()

    assert str(tmp_path) in view.problem
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_a_key_that_was_revoked_before_the_file_went_does_not_come_back(view, tmp_path) -> None:
    """It was in use, and nobody had presented it between the two."""
    revoked, other, renewed = write(tmp_path, "revoked", "other", "renewed")
    for key in (revoked, other, renewed):
        assert seen(view, key) == key
    with open_database(tmp_path) as database:
        KeyRepository(database).revoke(["revoked"], 5)
        new = KeyRepository(database).rotate("renewed", 5)
    assert seen(view, other) == other
    for path in tmp_path.iterdir():
        path.unlink()

    assert seen(view, revoked).state(6) == "revoked"
    assert view.find(renewed.id).matches(new.secret, 6)
    assert seen(view, other) == other


def test_a_file_that_comes_back_counts_as_it_is_then(view, tmp_path, caplog) -> None:
    before, other = write(tmp_path, "before", "other")
    assert seen(view, before) == before
    backup = tmp_path / "backup"
    shutil.copy(tmp_path / FILE, backup)
    (tmp_path / FILE).unlink()
    assert seen(view, before) == before

    after = write(tmp_path, "after")[0]

    assert seen(view, after) == after
    assert seen(view, before) is None
    assert view.problem is None
    assert "can be looked up again" in caplog.text

    backup.rename(tmp_path / FILE)
    assert seen(view, before) == before
    assert seen(view, other) == other
    assert seen(view, after) is None


def test_closing_a_replaced_file_leaves_the_new_ones_log_alone(view, tmp_path) -> None:
    write(tmp_path, "old")
    view.empty()
    for path in tmp_path.iterdir():
        path.unlink()
    with open_database(tmp_path) as database:
        new = KeyRepository(database).create("new", 0).key
        assert (tmp_path / f"{FILE}-wal").stat().st_size > 0
        assert seen(view, new) == new
        assert (tmp_path / f"{FILE}-wal").stat().st_size > 0
    assert [key.name for key in _listed(tmp_path)] == ["new"]


def _listed(directory: Path) -> list[ApiKey]:
    with open_database(directory) as database:
        return KeyRepository(database).all()


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def another_programs(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE keys (id, name)")
    connection.close()


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [garbage, emptied, another_programs, unreadable])
def test_a_damaged_file_lets_nobody_new_in(view, tmp_path, harm) -> None:
    used, unused = write(tmp_path, "used", "unused")
    assert seen(view, used) == used
    harm(tmp_path / FILE)

    assert seen(view, used) == used
    with pytest.raises(StoreError):
        view.find(unused.id)
    with pytest.raises(StoreError):
        view.empty()
    with pytest.raises(StoreError):
        KeyView(tmp_path).empty()
    with pytest.raises(ConfigError):
        open_database(tmp_path)


def test_a_file_without_keys_that_goes_is_no_problem(view, tmp_path) -> None:
    open_database(tmp_path).close()
    assert view.empty()
    (tmp_path / FILE).unlink()

    assert view.empty()
    assert view.problem is None


def test_a_file_that_turns_read_only_is_read_on(view, tmp_path) -> None:
    used, unused = write(tmp_path, "used", "unused")
    assert seen(view, used) == used
    for path in (*tmp_path.iterdir(), tmp_path):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        assert seen(view, unused) == unused
        with contextlib.closing(KeyView(tmp_path)) as other:
            assert seen(other, used) == used
    finally:
        tmp_path.chmod(0o700)


def test_memory_is_bounded_however_many_keys_there_are(tmp_path) -> None:
    keys = write(tmp_path, *map(str, range(50)))
    view = KeyView(tmp_path, cached=10)

    for key in keys:
        assert seen(view, key) == key
    for number in range(100):
        assert view.find(f"{number:010}") is None

    assert list(view._known) == [key.id for key in keys[-10:]]
    view.close()


def test_a_key_in_use_is_read_once(view, tmp_path) -> None:
    statements: list[str] = []
    (used,) = write(tmp_path, "used")
    view.empty()
    view._connection.set_trace_callback(statements.append)

    for _ in range(100):
        assert seen(view, used) == used

    assert sum("FROM keys" in statement for statement in statements) == 1


def test_writers_and_the_view_do_not_wait_for_each_other(view, tmp_path, keys) -> None:
    key = keys.create("a", 0).key
    with keys._database.transaction() as connection:
        connection.execute("UPDATE keys SET revoked = 1")
        assert seen(view, key).revoked is None
    assert seen(view, key).revoked == 1
