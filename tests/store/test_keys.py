"""Keys in the store: made, listed, ended, given new secrets."""

import sqlite3

import pytest

from server.core.errors import ConfigError
from server.store.keys import KeyLimits, StoredKey, stored_key
from server.store.refusals import StoreError

DAY = 86400
FULL = KeyLimits(
    rpm=12,
    burst=3,
    tpm=0,
    max_concurrent=2,
    max_context=4096,
    max_tokens=512,
    priority="batch",
    weight=2.5,
    models=("a", "ü,b"),
)


def row_of(database, key_id) -> StoredKey:
    return stored_key(database.rows("SELECT * FROM keys WHERE id = ?", (key_id,))[0])


def test_everything_about_a_key_comes_back(keys) -> None:
    new = keys.create("ci", 1000.9, limits=FULL, expires=2000.9, admin=True)
    plain = keys.create("plain", 1001)

    assert keys.all() == [new.key, plain.key]
    assert new.key.limits == FULL
    assert (new.key.created, new.key.expires, new.key.admin) == (1000, 2000, True)
    assert plain.key.limits == KeyLimits()
    assert (plain.key.expires, plain.key.revoked, plain.key.admin) == (None, None, False)


def test_the_secret_is_nowhere_in_the_files(keys, database, tmp_path) -> None:
    new = keys.create("ci", 0)
    rotated = keys.rotate("ci", 0, overlap=60)

    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (new.secret, rotated.secret):
        assert secret.encode() not in files
        assert secret.rpartition("_")[2].encode() not in files
        assert secret not in repr(new) + repr(rotated) + repr(row_of(database, new.key.id))
    assert new.key.id.encode() in files


def test_only_the_secret_matches(keys, database) -> None:
    new, other = keys.create("a", 0), keys.create("b", 0)
    stored = row_of(database, new.key.id)

    assert stored.matches(new.secret, 0)
    for wrong in (other.secret, new.secret[:-1], new.secret + "0", "", "\ud800", "0" * 32):
        assert not stored.matches(wrong, 0)


def test_a_key_expires_and_is_revoked_for_good(keys) -> None:
    key = keys.create("a", 0, expires=DAY).key
    assert [key.state(now) for now in (0, DAY - 1, DAY, 2 * DAY)] == [
        "active",
        "active",
        "expired",
        "expired",
    ]

    (revoked,) = keys.revoke(["a"], 10)
    assert (revoked.state(10), revoked.revoked) == ("revoked", 10)
    # The clock may have gone back since; the end stays the end.
    assert revoked.state(5) == "revoked"
    assert keys.revoke([revoked.prefix], 99) == [revoked]
    with pytest.raises(ConfigError, match="is revoked; create a new one"):
        keys.rotate("a", 20)


def test_rotating_keeps_the_key_and_changes_its_secret(keys, database) -> None:
    old = keys.create("a", 0, limits=FULL, admin=True)
    new = keys.rotate("a", 100)

    assert new.key == old.key
    stored = row_of(database, old.key.id)
    assert stored.matches(new.secret, 100)
    assert not stored.matches(old.secret, 100)


def test_with_an_overlap_the_old_secret_counts_until_then(keys, database) -> None:
    first = keys.create("a", 0)
    second = keys.rotate("a", 100, overlap=60)
    stored = row_of(database, first.key.id)
    assert stored.matches(second.secret, 10_000)
    assert stored.matches(first.secret, 159)
    assert not stored.matches(first.secret, 160)

    third = keys.rotate("a", 110, overlap=60)
    stored = row_of(database, first.key.id)
    assert [stored.matches(new.secret, 111) for new in (first, second, third)] == [
        False,
        True,
        True,
    ]
    keys.revoke(["a"], 112)
    assert not row_of(database, first.key.id).matches(second.secret, 112)


def test_an_expired_key_is_not_rotated_back_to_life(keys) -> None:
    keys.create("a", 0, expires=DAY)

    with pytest.raises(ConfigError, match="is expired; create a new one"):
        keys.rotate("a", DAY)


def test_a_name_is_for_one_key_until_it_is_revoked(keys) -> None:
    first = keys.create("caf\N{LATIN SMALL LETTER E WITH ACUTE}", 0)
    with pytest.raises(ConfigError, match=f"already \\({first.key.prefix}\\)"):
        keys.create("cafe\N{COMBINING ACUTE ACCENT}", 0)

    keys.revoke(["cafe\N{COMBINING ACUTE ACCENT}"], 1)
    second = keys.create("caf\N{LATIN SMALL LETTER E WITH ACUTE}", 2)

    # The name now means the one that counts.
    assert keys.rotate("café", 3).key.id == second.key.id
    assert keys.revoke(["café"], 4)[0].id == second.key.id


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " a",
        "a ",
        "a\nb",
        "a\tb",
        "\x1b[31mred",
        "a\x00",
        "a\N{RIGHT-TO-LEFT OVERRIDE}b",
        "a\N{ZERO WIDTH SPACE}",
        "a\N{NO-BREAK SPACE}b",
        "\ud800",
        "x" * 101,
        "ogk_" + "0" * 60,
    ],
)
def test_names_that_could_deceive_or_break_lines_are_refused(keys, name) -> None:
    with pytest.raises(ConfigError) as refusal:
        keys.create(name, 0)

    assert refusal.value.message.isprintable()
    assert "0" * 60 not in refusal.value.message
    assert keys.all() == []


@pytest.mark.parametrize("name", ["a", "team one", "日本語", "x" * 100, "a';DROP TABLE keys;--"])
def test_other_names_are_taken(keys, name) -> None:
    keys.create(name, 0)

    assert [key.name for key in keys.all()] == [name]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nobody", "There is no key 'nobody'"),
        ("ogk_0123456789", "There is no key ogk_0123456789"),
        ("ogk_short", "That is no key's id"),
        ("ogk_0123456789_topsecret", "There is no key ogk_0123456789."),
    ],
)
def test_what_is_no_key_is_said_without_repeating_secrets(keys, reference, message) -> None:
    for change in (lambda: keys.revoke([reference], 0), lambda: keys.rotate(reference, 0)):
        with pytest.raises(ConfigError, match=message) as refusal:
            change()
        assert "topsecret" not in refusal.value.message


def test_a_leaked_key_can_be_revoked_by_what_leaked(keys) -> None:
    new = keys.create("a", 0)

    assert keys.revoke([new.secret[:40]], 1) == keys.all()
    assert keys.all()[0].revoked == 1


def test_several_keys_are_revoked_all_or_none(keys) -> None:
    keys.create("a", 0)
    with pytest.raises(ConfigError):
        keys.revoke(["a", "nobody"], 1)
    assert keys.all()[0].revoked is None


@pytest.mark.parametrize(
    "change",
    [
        "rpm = -1",
        "burst = 0",
        "max_tokens = 0",
        "weight = 0",
        "priority = 'urgent'",
        "hash = x'00'",
        "expires = 'never'",
        "models = x'00'",
        "admin = 2",
    ],
)
def test_the_schema_refuses_what_no_key_may_have(keys, database, change) -> None:
    keys.create("a", 0)

    with pytest.raises(sqlite3.IntegrityError), database.transaction() as connection:
        connection.execute(f"UPDATE keys SET {change}")


@pytest.mark.parametrize("models", ["", "{", '"a"', "[1]", "{}", "null"])
def test_a_damaged_list_of_models_never_means_all_models(keys, database, models) -> None:
    keys.create("a", 0, limits=FULL)
    with database.transaction() as connection:
        connection.execute("UPDATE keys SET models = ?", (models,))

    with pytest.raises(StoreError, match="damaged"):
        keys.all()
