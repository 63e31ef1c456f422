"""Texts of grammars are written once."""

from __future__ import annotations

import pytest

from server.core.errors import InvalidRequest
from server.gateway.written import Written


class Writer:
    def __init__(self, text="text"):
        self.times = 0
        self.text = text

    def __call__(self):
        self.times += 1
        return self.text


def test_what_was_written_is_remembered():
    written, write = Written(), Writer()
    for _ in range(3):
        assert written.text({"a": [1, True]}, write) == "text"
    assert write.times == 1
    assert written.text({"a": [1, 1]}, Writer("other")) == "other"
    assert written.text({"a": [1, True]}, Writer("never")) == "text"


def test_the_order_of_keys_counts():
    written = Written()
    assert written.text({"a": 1, "b": 2}, Writer("ab")) == "ab"
    assert written.text({"b": 2, "a": 1}, Writer("ba")) == "ba"


def test_an_error_is_told_again():
    def refuse():
        raise InvalidRequest("no", param="p")

    written = Written()
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            written.text(1, refuse)
    assert written.text(1, Writer()) == "text"


def test_the_oldest_go_first_and_too_long_ones_are_not_kept():
    written, kept, gone = Written(limit=10), Writer("12345"), Writer("abcde")
    written.text("gone", gone)
    written.text("kept", kept)
    written.text("kept", kept)
    written.text("new", Writer("x"))
    assert (written.text("kept", kept), kept.times) == ("12345", 1)
    assert (written.text("gone", gone), gone.times) == ("abcde", 2)
    long = Writer("x" * 11)
    written.text("long", long)
    written.text("long", long)
    assert long.times == 2
    assert (written.text("gone", gone), gone.times) == ("abcde", 2)


def test_what_nests_without_end_is_left_to_the_writer():
    deep: list[object] = []
    deep.append(deep)
    assert Written().text(deep, Writer("refused")) == "refused"
