import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.core.request import Thinking
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


START, END = 300, 301
THINKING = Thinking(START, END)
INSIDE = Thinking(START, END, inside=True)
MARKED = [bytes([byte]) for byte in range(256)] + [b""] * 44 + [b"<think>", b"</think>"]


def said(
    tokens: list[int], stop: tuple[str, ...], thinking: Thinking | None
) -> tuple[str, str | None]:
    detokenizer = Detokenizer(MARKED, stop, thinking)
    text = ""
    for token in tokens:
        text += detokenizer.push(token)
        if detokenizer.match is not None:
            return text, detokenizer.match
    return text + detokenizer.flush(), None


@pytest.mark.parametrize(
    ("thinking", "tokens", "text"),
    [
        (None, [*b"a stop b"], "a "),
        (THINKING, [*b"a stop b"], "a "),
        (THINKING, [*b"stop b"], ""),
        (THINKING, [START, *b"a stop", END, *b"b stop c"], "<think>a stop</think>b "),
        (INSIDE, [*b"a stop", END, *b"b stop c"], "a stop</think>b "),
        (INSIDE, [*b"a stop", END, *b"stop c"], "a stop</think>"),
        (INSIDE, [*b"st", END, *b"op c stop"], "st</think>op c "),
        (INSIDE, [*b"a stop", END, *b"b", END, *b"stop"], "a stop</think>b</think>"),
        (THINKING, [*b"a", START, *b"stop", END], "a<think>"),
    ],
)
def test_stop_strings_rest_while_it_thinks(thinking, tokens, text):
    assert said(tokens, ("stop",), thinking) == (text, "stop")


def test_reasoning_without_an_end_ends_nothing_and_is_told_at_once():
    detokenizer = Detokenizer(MARKED, ("stop",), INSIDE)
    assert [detokenizer.push(token) for token in b"stop st"] == list("stop st")
    assert detokenizer.flush() == ""
    assert detokenizer.match is None
    assert said([0xE4, 0xBD], ("\ufffd",), INSIDE) == ("\ufffd", None)


def test_the_line_breaks_before_the_answer_do_not_end_it():
    stop = ("\n\n", "\n")
    assert said([*b"a\n\n", END, *b"\n\nb\nc"], stop, INSIDE) == ("a\n\n</think>\n\nb", "\n")
    assert said([END, *b"\n\n"], stop, INSIDE) == ("</think>\n\n", None)
    assert said([*b"\n\nb"], stop, THINKING) == ("", "\n")
