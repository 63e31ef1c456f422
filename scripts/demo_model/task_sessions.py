"""Longer chats with tools: many questions for the same tools, and some that no tool answers."""

from __future__ import annotations

import json
from random import Random

from demo_model.facts import written_facts
from demo_model.phrasing import vary
from demo_model.samples import Sample
from demo_model.task_tools import (
    NO_TOOL,
    Json,
    ToolQuestion,
    ToolSpec,
    ask_for,
    call_message,
    call_text,
    distinct_tools,
    make_tool,
    result_for,
    values_for,
)
from demo_model.words import WordPool


def session_sample(rng: Random, pool: WordPool, system: Json | None) -> Sample:
    """Some questions with the same tools: calls, results, facts, and things without a tool.

    A tool is asked for again only after all the others: repeating the call of an earlier turn would
    be easier to learn than reading the tools.
    """
    specs = distinct_tools(rng, pool, rng.choice((1, 2, 3, 4)))
    schemas = tuple(spec.schema(rng) for spec in specs)
    messages: list[Json] = [] if system is None else [system]
    waiting: list[ToolSpec] = []
    for _ in range(rng.choice((2, 3, 4, 5, 6))):
        if rng.random() < 0.18:
            question, answer = _without_tool(rng, pool, schemas)
            messages += _exchange(question, answer)
            continue
        waiting = waiting or rng.sample(specs, len(specs))
        tool = waiting.pop()
        asked = ToolQuestion(schemas, "", tool, values_for(rng, pool, tool))
        user: Json = {"role": "user", "content": ask_for(rng, tool, asked.values)}
        if rng.random() < 0.6:
            messages += [user, {"role": "assistant", "content": call_text(tool.name, asked.values)}]
            continue
        content, answer = result_for(rng, pool, asked)
        result: Json = {"role": "tool", "content": content}
        messages += [user, call_message(tool.name, asked.values), result]
        messages.append({"role": "assistant", "content": answer})
    final = str(messages.pop()["content"])
    return Sample("tool_session", tuple(messages), final, schemas, rng.choice((None, None, False)))


def drill_sample(rng: Random, pool: WordPool, system: Json | None) -> Sample:
    """Several tools with at most one parameter, each asked for at most once.

    No tool is asked for twice: that would teach to repeat an earlier call, not to read the tools.
    """
    specs = distinct_tools(rng, pool, rng.choice((2, 3, 4, 5, 6)), rng.choice(((0,), (0, 1))))
    schemas = tuple(spec.schema(rng) for spec in specs)
    messages: list[Json] = [] if system is None else [system]
    for tool in rng.sample(specs, rng.randint(1, len(specs))):
        values = values_for(rng, pool, tool)
        messages += _exchange(ask_for(rng, tool, values), call_text(tool.name, values))
    final = str(messages.pop()["content"])
    return Sample("tool_session", tuple(messages), final, schemas, rng.choice((None, None, False)))


def _exchange(question: str, answer: str) -> list[Json]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _without_tool(rng: Random, pool: WordPool, schemas: tuple[Json, ...]) -> tuple[str, str]:
    """A question that needs no tool, or one that no offered tool can answer."""
    if rng.random() < 0.75:
        fact = rng.choice([fact for fact in written_facts() if not fact.thought])
        return vary(rng, fact), fact.answer
    described = json.dumps(schemas, ensure_ascii=False)
    while True:
        other = make_tool(rng, pool, set())
        if not any(word in described for word in other.noun.split()):
            return ask_for(rng, other, values_for(rng, pool, other)), NO_TOOL[other.language]
