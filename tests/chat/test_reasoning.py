"""Reasoning is told from the answer."""

import pytest

from server.chat.forms.hermes import HermesForm
from server.chat.reply import CallArguments, CallOpened, Content, Reasoning
from server.chat.shape import ReplyShape
from tests.chat.replies import parse

POSSIBLE = ReplyShape("possible")
INSIDE = ReplyShape("inside")


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("shape", "text", "parts"),
    [
        (POSSIBLE, "<think>\nHm.\n\nSo.\n</think>\n\nYes.", [Reasoning("Hm.\n\nSo."), Content("Yes.")]),
        (POSSIBLE, " \n<think>Hm.</think>Yes.\n", [Reasoning("Hm."), Content("Yes.\n")]),
        (POSSIBLE, "<think>\n\n</think>\n\nYes.", [Content("Yes.")]),
        (POSSIBLE, "\n Yes. <think>no</think>", [Content("\n Yes. <think>no</think>")]),
        (POSSIBLE, "<thing>", [Content("<thing>")]),
        (POSSIBLE, " <thi", [Content(" <thi")]),
        (POSSIBLE, "<think>never closed\n</thin", [Reasoning("never closed\n</thin")]),
        (POSSIBLE, "<think>a </b> \n\n c</think>", [Reasoning("a </b> \n\n c")]),
        (POSSIBLE, "<think>a</think> \n", [Reasoning("a")]),
        (POSSIBLE, "<think>a</think>b</think>", [Reasoning("a"), Content("b</think>")]),
        (INSIDE, "\nHm.\n</think>\n\nYes.", [Reasoning("Hm."), Content("Yes.")]),
        (INSIDE, "</think>Yes.", [Content("Yes.")]),
        (INSIDE, "<think>\nHm.</think>Yes.", [Reasoning("Hm."), Content("Yes.")]),
        (INSIDE, "Hm. <think> Hm.", [Reasoning("Hm. <think> Hm.")]),
        (INSIDE, " \n", [Reasoning(" \n")]),
        (ReplyShape(), "<think>Hm.</think> Yes. ", [Content("<think>Hm.</think> Yes. ")]),
        (ReplyShape(), "", []),
    ],
)  # fmt: skip
def test_reasoning_is_told_from_the_answer(shape, text, parts, step):
    assert parse(shape, [text[i : i + step] for i in range(0, len(text), step)]) == parts


def test_nothing_is_held_back_but_what_may_be_a_tag():
    parser = INSIDE.parser()

    assert parser.push("Hm. <") == [Reasoning("Hm. ")]
    assert parser.push("/") == []
    assert parser.push("p> x\n") == [Reasoning("</p> x")]
    assert parser.push("\n</think") == []
    assert parser.push(">\n") == []
    assert parser.push("\nYes ") == [Content("Yes ")]
    assert parser.close() == []


def test_calls_in_reasoning_are_none():
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    shape = ReplyShape("possible", HermesForm())

    parts = parse(shape, [f"<think>{call}</think>\n{call}"])

    assert parts == [Reasoning(call), CallOpened(0, "f"), CallArguments(0, "{}")]
