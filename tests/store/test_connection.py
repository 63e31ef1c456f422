"""The store's file: made, shared, and refused with words that help."""

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.core.errors import ConfigError
from server.store import migrations
from server.store.connection import APPLICATION_ID, FILE, connect, open_database
from server.store.key_view import KeyView
from server.store.keys import KeyRepository
from server.store.refusals import StoreError

NAMES = "SELECT name FROM keys ORDER BY name"


def refused(directory: Path) -> str:
    with pytest.raises(ConfigError) as refusal:
        open_database(directory)
    return refusal.value.message


def test_a_new_store_is_for_its_owner_only(tmp_path) -> None:
    directory = tmp_path / "deep" / "data"

    with open_database(directory) as database:
        KeyRepository(database).create("a", 0)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert modes == {FILE: 0o600, f"{FILE}-wal": 0o600, f"{FILE}-shm": 0o600}


def test_it_is_durable_and_says_what_it_is(database) -> None:
    pragmas = ("journal_mode", "synchronous", "foreign_keys", "application_id", "user_version")

    values = [database.rows(f"PRAGMA {name}")[0][0] for name in pragmas]

    assert values == ["wal", 2, 1, APPLICATION_ID, len(migrations.MIGRATIONS)]


def test_what_was_written_is_there_after_reopening(tmp_path) -> None:
    with open_database(tmp_path) as database:
        KeyRepository(database).create("a", 0)
    with open_database(tmp_path) as database:
        assert [row["name"] for row in database.rows(NAMES)] == ["a"]


def test_a_transaction_is_whole_or_not_at_all(database, keys) -> None:
    keys.create("a", 0)

    def change(second: str) -> None:
        with database.transaction() as connection:
            connection.execute("UPDATE keys SET name = 'b'")
            connection.execute(second)

    with pytest.raises(sqlite3.IntegrityError):
        change("UPDATE keys SET hash = x'00'")
    with pytest.raises(StoreError, match="no such column"):
        change("UPDATE keys SET none = 1")
    assert [row["name"] for row in database.rows(NAMES)] == ["a"]


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 500)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [damaged, truncated, garbage, emptied])
def test_a_damaged_file_is_refused_with_the_way_out_and_left_as_it_is(tmp_path, harm) -> None:
    with open_database(tmp_path) as database:
        KeyRepository(database).create("a", 0)
    path = tmp_path / FILE
    harm(path)
    before = path.read_bytes()

    message = refused(tmp_path)

    assert f"{path} is damaged" in message
    for way in ("restore a backup", ".recover", "onegpu keys create"):
        assert way in message
    assert path.read_bytes() == before


def test_the_way_out_works(tmp_path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"garbage")
    refused(tmp_path)

    path.rename(tmp_path / "moved")

    with open_database(tmp_path) as database:
        assert database.rows(NAMES) == []


def test_a_newer_schema_is_refused(tmp_path) -> None:
    with open_database(tmp_path) as database, database.transaction() as connection:
        connection.execute("PRAGMA user_version = 99")

    assert "written by a newer onegpu (schema 99" in refused(tmp_path)


def test_another_programs_database_is_refused(tmp_path) -> None:
    with connect_new(tmp_path / FILE) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()

    assert "database of another program" in refused(tmp_path)


def connect_new(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path)


def test_a_locked_file_is_refused_after_some_patience(tmp_path, monkeypatch) -> None:
    open_database(tmp_path).close()
    monkeypatch.setattr("server.store.connection._BUSY_SECONDS", 0.01)
    monkeypatch.setattr(
        "server.store.connection.connect",
        lambda path: connect(path, patience=0.01),
    )
    other = connect(tmp_path / FILE)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")

    message = refused(tmp_path)
    other.close()

    assert "is locked by another program" in message
    assert "fuser -v" in message


def test_a_write_that_finds_the_file_locked_says_so(tmp_path) -> None:
    open_database(tmp_path).close()
    other = connect(tmp_path / FILE)
    other.execute("BEGIN IMMEDIATE")
    with open_database(tmp_path) as database:
        database._connection.execute("PRAGMA busy_timeout = 1")
        with pytest.raises(StoreError, match="locked by another program"):
            KeyRepository(database).create("a", 0)
        # Who reads does not wait.
        assert KeyRepository(database).all() == []
        other.execute("ROLLBACK")
        other.close()
        KeyRepository(database).create("a", 0)


@pytest.fixture
def somebody() -> Iterator[None]:
    """Nobody in particular instead of root, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("somebody")
def test_a_directory_that_is_read_only_is_refused() -> None:
    # Not tmp_path: others than its owner may not even look into that.
    directory = Path(tempfile.mkdtemp())
    try:
        directory.chmod(0o555)
        assert "cannot be used: Permission denied" in refused(directory)
    finally:
        directory.chmod(0o700)
        directory.rmdir()


def test_a_directory_that_is_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "data").write_text("x", encoding="utf-8")

    message = refused(tmp_path / "data")

    assert "cannot be used: File exists" in message
    assert "ONEGPU_DATA_DIR" in message


def test_a_home_that_is_not_there_is_no_directory_called_tilde() -> None:
    assert "has no home directory" in refused(Path("~/data"))
    assert not Path("~").exists()


def test_a_file_that_is_a_directory_is_refused(tmp_path) -> None:
    (tmp_path / FILE).mkdir()

    assert FILE in refused(tmp_path)


def test_what_a_crash_left_while_making_the_file_is_no_obstacle(tmp_path) -> None:
    (tmp_path / f".{FILE}.new").write_bytes(b"half")
    (tmp_path / f".{FILE}.new-wal").write_bytes(b"half")

    with open_database(tmp_path) as database:
        assert database.rows(NAMES) == []
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_new_files_name_is_on_the_disk_before_anything_is_told(tmp_path, monkeypatch) -> None:
    """Or a power failure takes the name back, and the first key with it."""
    synced: list[tuple[bool, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        of_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((of_directory, (tmp_path / FILE).exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    open_database(tmp_path).close()

    assert (True, True) in synced


def test_what_was_committed_survives_a_kill_and_nothing_else_does(tmp_path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from server.store.connection import open_database\n"
        "from server.store.keys import KeyRepository\n"
        "database = open_database(Path(sys.argv[1]))\n"
        "print(KeyRepository(database).create('whole', 0).key.id, flush=True)\n"
        "with database.transaction() as connection:\n"
        "    connection.execute('PRAGMA cache_spill = 1')\n"
        "    connection.execute(\"UPDATE keys SET name = 'half'\")\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert ended.returncode == -9
    assert (tmp_path / f"{FILE}-wal").stat().st_size > 0
    with contextlib.closing(KeyView(tmp_path)) as view:
        found = view.find(ended.stdout.strip())
        assert found is not None
        assert found.key.name == "whole"
    with open_database(tmp_path) as database:
        assert [row["name"] for row in database.rows(NAMES)] == ["whole"]


def test_a_full_disk_is_told_and_loses_nothing(tmp_path) -> None:
    with open_database(tmp_path) as database:
        keys = KeyRepository(database)
        keys.create("first", 0)
        pages = database.rows("PRAGMA page_count")[0][0]
        database._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"full.*Look at the disk"):  # noqa: PT012
            for number in range(1000):
                keys.create(f"more-{number}", 0)
        database._connection.execute("PRAGMA max_page_count = 10000")
        keys.create("later", 0)
        names = [row["name"] for row in database.rows(NAMES)]
    assert {"first", "later"} <= set(names)


def test_a_migration_is_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    open_database(tmp_path).close()
    steps = (*migrations.MIGRATIONS, ("CREATE TABLE more (x)", "CREATE TABLE more (x)"))
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    monkeypatch.setattr("server.store.connection.MIGRATIONS", steps)
    refused(tmp_path)

    steps = (*migrations.MIGRATIONS[:1], ("CREATE TABLE more (x)",), ("DROP TABLE more",))
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    monkeypatch.setattr("server.store.connection.MIGRATIONS", steps)
    with open_database(tmp_path) as database:
        assert database.rows("PRAGMA user_version")[0][0] == 3


def test_processes_that_make_and_fill_the_same_store_lose_nothing(tmp_path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from server.store.connection import open_database\n"
        "from server.store.keys import KeyRepository\n"
        "sys.stdin.readline()\n"
        "with open_database(Path(sys.argv[1])) as database:\n"
        "    for number in range(20):\n"
        "        KeyRepository(database).create(f'{sys.argv[2]}-{number}', 0)\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "data"), str(number)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]

    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    ended = [(writer.communicate(timeout=60)[1], writer.returncode) for writer in writers]

    assert ended == [("", 0)] * 4
    with open_database(tmp_path / "data") as database:
        assert len(database.rows(NAMES)) == 80
