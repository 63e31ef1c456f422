"""However an answer is cut, its parts are the same, and no character of it is lost."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.forms.calls import CallParser
from server.chat.forms.functions import FunctionsForm
from server.chat.forms.hermes import HermesForm
from server.chat.reasoning import ReasoningSplitter
from server.chat.reply import Content, Reasoning
from server.chat.scanning import SPACE, PlainParser
from server.chat.shape import ReplyShape
from tests.chat.replies import calls, content, parse, tool

TOOLS = [tool("f", {"s": {"type": "string"}, "n": {"type": "number"}}), tool("g")]
SHAPES = [
    ReplyShape(thinking, form, TOOLS)
    for thinking in ("none", "possible", "inside")
    for form in (None, HermesForm(), FunctionsForm())
]
IDS = [f"{shape.thinking}-{shape.form.name if shape.form else 'plain'}" for shape in SHAPES]
FRAGMENTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "f>", "g>", "</function>"),
    *("<parameter=", "s>", "n>", "</parameter>", "<function=f>", "<parameter=s>", "<parameter=n>"),
    *('{"name": "f"', ', "arguments": ', '{"a": ', '"', "{", "}", "[", "]", "\\", "\\u00e9", "\\ud83d"),
    *("\\ude00", '{"arguments": ', '"name": "g"}', "null", "1.5", "True", ",", ":", "\n", " ", "\r\n"),
    *("<", "</", ">", "é", "😀", "\u2028", "word", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),
]  # fmt: skip
mixtures = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=25).map("".join)


@st.composite
def cuts(draw, texts):
    """A text and its pieces, some of them empty."""
    text = draw(texts)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=len(text) + 2)))
    bounds = [0, *places, len(text)]
    return text, [text[a:b] for a, b in pairwise(bounds)]


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@settings(max_examples=150, deadline=None)
@given(cuts(mixtures))
def test_any_cut_gives_the_same_parts(shape, cut):
    text, pieces = cut

    assert parse(shape, pieces) == parse(shape, [text]) == parse(shape, text)


@pytest.mark.parametrize("form", [HermesForm(), FunctionsForm()], ids=lambda form: form.name)
@settings(max_examples=500, deadline=None)
@given(mixtures)
def test_without_a_call_the_content_is_the_text(form, text):
    parts = parse(ReplyShape(form=form, tools=TOOLS), [text])

    if not calls(parts):
        assert parts == ([Content(text)] if text else [])
    assert is_within(content(parts), text)


def is_within(part: str, whole: str) -> bool:
    """Whether `part` is `whole` with some characters left out."""
    rest = iter(whole)
    return all(char in rest for char in part)


plain = st.text(st.sampled_from('ab<>{}/\\" \n\té😀\u2028'), max_size=8)
almost = st.sampled_from(
    ["<tool_call> x", "<tool_call>{x", "</tool_call>", '<tool_call>{"name": }', "<tool_call>{}", "<x>"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=5,
)
spaces = st.text(st.sampled_from(SPACE), max_size=2)


@st.composite
def hermes_calls(draw):
    """A call's text, its name, and the text of its arguments."""
    name = draw(st.text(min_size=1, max_size=5))
    arguments = json.dumps(
        draw(st.dictionaries(plain, values, max_size=3)), ensure_ascii=draw(st.booleans())
    )
    written = json.dumps(arguments) if draw(st.booleans()) else arguments
    members = [f'"name":{draw(spaces)}{json.dumps(name)}', f'"arguments": {written}']
    if draw(st.booleans()):
        members.reverse()
    if draw(st.booleans()):
        members.insert(draw(st.integers(0, 2)), f'"x": {json.dumps(draw(values))}')
    inner = f"{draw(spaces)},{draw(spaces)}".join(members)
    text = f"<tool_call>{draw(spaces)}{{{inner}{draw(spaces)}}}{draw(spaces)}</tool_call>"
    return text, name, arguments


@st.composite
def function_calls(draw):
    given_values = draw(st.dictionaries(st.sampled_from(["s", "n"]), st.none()))
    arguments = {key: draw(plain if key == "s" else st.integers()) for key in given_values}
    inner = "".join(
        f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()
    )
    text = f"<tool_call>{draw(spaces)}<function=f>\n{inner}</function>{draw(spaces)}</tool_call>"
    return text, "f", json.dumps(arguments, ensure_ascii=False)


@pytest.mark.parametrize(
    ("form", "written"),
    [(HermesForm(), hermes_calls()), (FunctionsForm(), function_calls())],
    ids=["hermes", "functions"],
)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_text_and_calls_are_told_apart(form, written, data):
    """What is left out is calls' tags and frames, and white space next to calls: nothing else."""
    segments = data.draw(st.lists(plain | almost | written, max_size=6))
    text, said, expected = "", "", []
    after_call = False
    for segment in segments:
        if isinstance(segment, tuple):
            text += segment[0]
            said = said.rstrip(SPACE)
            expected.append(segment[1:])
            after_call = True
        else:
            # A letter ends what the segment before may have begun.
            more = segment if after_call else "x" + segment
            text += more
            said += more.lstrip(SPACE) if after_call else more
            after_call = after_call and not more.strip(SPACE)

    parts = parse(ReplyShape(form=form, tools=TOOLS), [text])

    assert content(parts) == said
    assert calls(parts) == expected


@settings(max_examples=300, deadline=None)
@given(spaces, plain, plain, st.booleans())
def test_reasoning_and_content_are_the_text(space, thought, answer, closed):
    text = f"{space}<think>{thought}" + (f"</think>{answer}" if closed else "")

    parts = parse(ReplyShape("possible"), [text])

    reasoning = thought.strip("\n") if closed else thought.lstrip("\n")
    said = answer.lstrip(SPACE) if closed else ""
    assert parts == [kind(text) for kind, text in ((Reasoning, reasoning), (Content, said)) if text]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HermesForm(), "word " * 10_000),
        (HermesForm(), " " * 50_000),
        (HermesForm(), '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 50_000),
        (HermesForm(), '<tool_call>{"arguments": {"a": "' + "x" * 50_000 + '"}, "name": "f"}'),
        (HermesForm(), '<tool_call>{"name": "f", "arguments": "' + "\\u00e9" * 8_000),
        (HermesForm(), "<tool_call>" + '{"a' * 15_000),
        (HermesForm(), "<tool_call>" * 5_000),
        (FunctionsForm(), "<function=f><parameter=s>" + "x\n" * 25_000),
        (FunctionsForm(), "<function=f><parameter=n>" + "x" * 50_000 + "</parameter>"),
        (FunctionsForm(), "<function=" + "x" * 50_000),
        (FunctionsForm(), "<function=f>" + "</function>\n" * 5_000),
        (None, "<think>" + "\n" * 50_000),
        (None, "<think>" + "<" * 50_000),
    ],
)
def test_what_a_step_takes_does_not_grow(form, text):
    """Every push reads what it is given and less than a tag of what came before."""
    inner = PlainParser() if form is None else form.parser(TOOLS)
    parser = ReasoningSplitter(inner, inside=False)
    for char in text:
        parser.push(char)
        assert len(parser._text) <= 20
        if isinstance(inner, CallParser):
            assert len(inner.text) - inner.at <= 20
    parser.close()
