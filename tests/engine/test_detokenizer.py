import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.engine.detokenizer import Detokenizer

BYTES = [bytes([value]) for value in range(256)]


def run(data, stop=()):
    detokenizer = Detokenizer(BYTES, stop)
    shown = []
    for byte in data:
        shown.append(detokenizer.push(byte))
        if detokenizer.match is not None:
            return shown, detokenizer
    shown.append(detokenizer.flush())
    return shown, detokenizer


@given(st.text())
def test_characters_are_never_split_and_nothing_is_lost(text):
    shown, _ = run(text.encode())
    assert "".join(shown) == text
    assert all("�" not in piece for piece in shown) or "�" in text


@given(st.binary())
def test_any_bytes_give_what_a_whole_decode_gives(data):
    shown, _ = run(data)
    assert "".join(shown) == data.decode(errors="replace")


@given(
    st.text("abé\n", max_size=40),
    st.lists(st.text("abé\n", min_size=1, max_size=4), min_size=1, max_size=3),
)
@example("abab", ["abc"])
@example("aab", ["ab"])
def test_the_first_stop_string_ends_the_text_and_no_part_of_it_is_shown(text, stop):
    shown, detokenizer = run(text.encode(), stop)
    result = "".join(shown)
    found = [at for piece in stop if (at := text.find(piece)) >= 0]
    if not found:
        assert detokenizer.match is None
        assert result == text
        return
    assert detokenizer.match in stop
    assert text.startswith(result + detokenizer.match)
    # The one that is complete first wins.
    assert len(result + detokenizer.match) == min(
        text.find(piece) + len(piece) for piece in stop if piece in text
    )


@pytest.mark.parametrize(
    ("pushed", "shown"),
    [("a", ["a"]), ("x<", ["x", ""]), ("x<e", ["x", "", ""]), ("x<f", ["x", "", "<f"])],
)
def test_text_that_may_become_a_stop_string_is_held_back(pushed, shown):
    detokenizer = Detokenizer(BYTES, ["<end>"])
    assert [detokenizer.push(byte) for byte in pushed.encode()] == shown


def test_what_was_held_back_comes_at_the_end():
    shown, detokenizer = run(b"so <en", ["<end>"])
    assert shown[-1] == "<en"
    assert detokenizer.match is None


def test_a_character_cut_short_is_shown_as_such():
    shown, _ = run("é".encode()[:1])
    assert shown == ["", "�"]
