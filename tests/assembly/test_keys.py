"""What is checked about keys before a server starts."""

import logging
from pathlib import Path

import pytest

from server.api.access import HEALTH
from server.assembly import lifecycle
from server.assembly.keys import access_rules, check_keys
from server.core.errors import ConfigError
from server.settings import ServerSettings, Settings
from server.store.connection import FILE, open_database
from server.store.keys import KeyRepository

EVERYWHERE = ("0.0.0.0", "::", "192.0.2.7", "2001:db8::1", "::ffff:192.0.2.7")


def settings(data_dir: Path, **server: object) -> Settings:
    return Settings(data_dir=data_dir, server=ServerSettings(**server))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machine_needs_no_keys_and_gets_no_files(tmp_path, address) -> None:
    check_keys(settings(tmp_path / "data"), address)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", EVERYWHERE)
def test_others_need_keys(tmp_path, address) -> None:
    for made in (False, True):
        if made:
            open_database(tmp_path).close()
        with pytest.raises(ConfigError) as refusal:
            check_keys(settings(tmp_path), address)
        for part in (address, str(tmp_path), "onegpu keys create", "--host", "allow_no_keys"):
            assert part in refusal.value.message

    with open_database(tmp_path) as database:
        KeyRepository(database).create("a", 0)
    check_keys(settings(tmp_path), address)


def test_others_need_no_keys_where_that_is_said_and_warned_of(tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    check_keys(settings(tmp_path, allow_no_keys=True), "0.0.0.0")

    assert "whoever reaches 0.0.0.0 may use this server" in caplog.text


def test_revoked_keys_are_keys(tmp_path) -> None:
    with open_database(tmp_path) as database:
        KeyRepository(database).create("a", 0)
        KeyRepository(database).revoke(["a"], 0)

    # Nobody gets in, so nothing is open.
    check_keys(settings(tmp_path), "0.0.0.0")


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_damaged_store_is_a_refusal_wherever_it_listens(tmp_path, address, content) -> None:
    (tmp_path / FILE).write_bytes(content)

    with pytest.raises(ConfigError, match=r"is damaged.*onegpu keys create"):
        check_keys(settings(tmp_path, allow_no_keys=True), address)


def test_the_refusal_comes_before_any_model_is_looked_for(tmp_path, monkeypatch) -> None:
    class Listener:
        def getsockname(self):
            return ("0.0.0.0", 8000)

        def close(self):
            pass

    def fetch(text: str) -> Path:
        raise AssertionError(text)

    monkeypatch.setattr(lifecycle, "listen", lambda _host, _port: Listener())
    with pytest.raises(ConfigError, match="has no API keys"):
        lifecycle.serve(settings(tmp_path), fetch)


def test_metrics_are_open_where_that_is_said() -> None:
    assert access_rules(ServerSettings()).open_paths == HEALTH
    assert access_rules(ServerSettings(open_metrics=True)).open_paths == HEALTH | {"/metrics"}
    assert access_rules(ServerSettings(cors_origins=("https://a",))).origins == ("https://a",)
