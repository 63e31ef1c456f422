"""The form of keys: what is one, what is none, and what is told about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.store.key_text import id_of, key_hash, new_id, new_key, referred_id

KEY = new_key("0123456789")


def test_a_key_has_its_id_and_256_random_bits() -> None:
    key_id = new_id()
    key = new_key(key_id)

    assert len(key) == 64
    assert id_of(key) == key_id
    assert key.startswith(f"ogk_{key_id}_")
    # 43 characters of base62 hold 256 bits; two draws never meet.
    assert len(key.split("_")[2]) == 43 + 6
    assert len({new_key(key_id) for _ in range(200)}) == 200
    assert len({new_id() for _ in range(200)}) == 200


@pytest.mark.parametrize("place", range(len(KEY)))
def test_one_wrong_character_is_seen_without_a_lookup(place) -> None:
    other = "a" if KEY[place] != "a" else "b"

    assert id_of(KEY[:place] + other + KEY[place + 1 :]) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ogk_",
        KEY[:-1],
        KEY + "0",
        KEY + "\n",
        " " + KEY,
        KEY.upper(),
        KEY.replace("ogk_", "sk-"),
        KEY.replace("0", "\N{FULLWIDTH DIGIT ZERO}"),
        KEY.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}"),
        KEY[:20] + "\x00" + KEY[21:],
        KEY[:20] + "\r\nX-Admin: 1" + KEY[31:],
        "\ud800" * 64,
        "ogk_" * 100_000,
    ],
)
def test_what_is_no_key_has_no_id(text) -> None:
    assert id_of(text) is None


@given(st.text(max_size=80))
def test_no_text_is_a_key_by_chance_or_breaks_the_check(text) -> None:
    assert id_of(text) is None
    assert len(key_hash(text)) == 32


def test_ids_are_read_from_what_a_person_has_at_hand() -> None:
    assert referred_id("ogk_0123456789") == "0123456789"
    assert referred_id(KEY) == "0123456789"
    assert referred_id(KEY[:30]) == "0123456789"
    for text in ("ogk_012345678", "ogk_0123456789x", "0123456789", "ogk_0123456789_é"):
        assert referred_id(text) is None


def test_hashes_tell_keys_apart_and_are_no_plain_hash() -> None:
    import hashlib

    assert key_hash(KEY) != key_hash(KEY[:-1])
    assert key_hash(KEY) != hashlib.blake2b(KEY.encode(), digest_size=32).digest()
