"""What is asked in several steps, each of which depends on the answer before it.

A task is a generator: it yields a question, is sent its outcome, and yields the next.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from server.bench.texts import Texts

if TYPE_CHECKING:
    from server.bench.client import Outcome  # the command's help lists scenarios without it

Message = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One request, but for the model's name and how to sample."""

    messages: Sequence[Message]
    max_tokens: int
    kind: str = ""
    """Which question of its scenario: some figures count one kind only."""
    tools: Sequence[dict[str, Any]] = ()


Task: TypeAlias = "Generator[Question, Outcome, None]"


def once(question: Question) -> Task:
    """Ask one question."""
    yield question


def forever(texts: Texts, tokens: int, max_tokens: int, *name: object) -> Task:
    """Ask one short question after the other; whoever drives it says when it is enough."""
    number = 0
    while True:
        asked = texts.tokens(tokens, *name, number)
        yield Question([{"role": "user", "content": asked}], max_tokens, "stream")
        number += 1


def conversation(texts: Texts, turns: int, tokens: int, max_tokens: int, *name: object) -> Task:
    """Talk for `turns` turns; each question brings along all that was said before."""
    said: list[Message] = []
    for turn in range(turns):
        said.append({"role": "user", "content": texts.tokens(tokens, *name, turn)})
        outcome = yield Question(list(said), max_tokens, f"turn {turn + 1}")
        said.append({"role": "assistant", "content": outcome.text or "(no answer)"})


def _tool(name: str, does: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": does,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(parameters),
            },
        },
    }


TOOLS = (
    _tool("retrieve", "Find passages in the documents.", query="What to look for."),
    _tool("run", "Run Python code and return what it prints.", code="The code."),
    _tool("chart", "Draw a chart of a table.", table="CSV.", title="Of the chart."),
)


def tool_steps(texts: Texts, max_tokens: int, *name: object) -> Task:
    """Retrieve, run, chart, answer. The tools are stubs on this side, with made-up results.

    The calls in the history are the expected ones whatever the model said, so that every server and
    every model is asked the same; what it called itself is in the outcomes.
    """
    topic = texts.words(4, *name, "topic").rstrip(".").lower()
    rows = [f"{2015 + i},{len(texts.words(3, *name, 'row', i))}" for i in range(10)]
    steps = (
        ("retrieve", {"query": topic}, texts.tokens(500, *name, "passages")),
        ("run", {"code": f"print(table({topic!r}))"}, "\n".join(["year,value", *rows])),
        ("chart", {"table": "\n".join(rows), "title": topic}, "chart.svg written, 640 x 400"),
    )
    said: list[Message] = [
        {"role": "system", "content": "Answer with the tools. " + texts.tokens(150, "tools")},
        {"role": "user", "content": f"Show how {topic} developed, in a chart, and explain it."},
    ]
    for number, (tool, arguments, result) in enumerate(steps):
        yield Question(list(said), max_tokens, tool, TOOLS)
        call = {"name": tool, "arguments": json.dumps(arguments)}
        identity = f"call_{number}"
        said += [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": identity, "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": identity, "content": result},
        ]
    yield Question(list(said), max_tokens, "answer", TOOLS)
