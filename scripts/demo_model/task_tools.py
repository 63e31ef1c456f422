"""Tool chats: offer tools, call the one that fits, use what it returns.

A tool is about a *noun* ("get the price of an item"); the question names the noun and the values.
Names are random, so the model has to find the tool by its description and copy its name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from demo_model import words
from demo_model.samples import Sample, thought
from demo_model.words import WordPool

Json = dict[str, Any]

_DESCRIBE_PLAIN = ("Get the {n}.", "Show the current {n}.", "Returns the {n}.", "Look up the {n}")
_DESCRIBE = (
    "Get the {n} of a {p}.", "Get the {n} for a given {p}.", "Look up the {n} by {p}.",
    "Returns the {n} of the {p}", "Find {n} for {p}", "Fetch the current {n} of one {p}.",
    "{N} lookup by {p}.", "Tells the {n} of any {p}.",
)  # fmt: skip
_DESCRIBE_ZH = ("查询{n}", "获取{n}", "查看某个对象的{n}。", "返回{n}。", "得到当前的{n}")
_ASK_PLAIN = ("What is the {n}?", "Show me the {n}.", "Get the {n}.", "I need the {n} now.",
              "Can you check the {n}?", "Tell me the current {n}, please.")  # fmt: skip
_ASK = (
    "What is the {n} of {v}?", "What is the {n} for {v}?", "Get the {n} for {v}.", "{N} of {v}?",
    "I need the {n} of {v}.", "Please look up the {n} for {v}.", "Show me the {n} of {v}",
    "Can you tell me the {n} of {v}?", "Find the {n} of {v}.", "Check the {n} for {v}, please.",
    "Do you know the {n} of {v}?", "I would like to know the {n} for {v}.",
    "For {v}, what is the {n}?", "Tell me {v}'s {n}.",
)  # fmt: skip
_ASK_PLAIN_ZH = ("{n}是多少？", "查一下{n}。", "现在的{n}是什么？", "请告诉我{n}。")
_ASK_ZH = ("{v}的{n}是多少？", "查一下{v}的{n}。", "请告诉我{v}的{n}。", "帮我查{v}的{n}。",
           "我想知道{v}的{n}。", "{v}的{n}怎么样？", "{v}的{n}？")  # fmt: skip
_NAMED = (", {p} {v}", " with {p} {v}", " and {p} {v}", ", {p} is {v}", " ({p}: {v})",
          ", {p} = {v}")  # fmt: skip
_NAMED_ZH = ("，{p} 是 {v}", "，{p} {v}", "，{p}: {v}")
_THINK_FIRST = ("Think first: ", "Think step by step. ", "Think about it: ")
_THINK_FIRST_ZH = ("先想一想：", "请先思考：")
NO_TOOL = {"en": "I have no tool for that.", "zh": "我没有合适的工具。"}


PARAMETER_COUNTS = (0, 0, 1, 1, 1, 1, 1, 2, 2)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool."""

    name: str
    kind: str
    note: str | None

    def schema(self) -> Json:
        """Its JSON schema."""
        schema: Json = {"type": self.kind}
        if self.note:
            schema["description"] = self.note
        return schema


@dataclass(frozen=True)
class ToolSpec:
    """A tool and what is needed to ask for it in words."""

    name: str
    noun: str
    language: str
    description: str
    parameters: tuple[Parameter, ...]

    def schema(self, rng: Random) -> Json:
        """The tool in OpenAI's form, with the variations that clients show."""
        properties = {p.name: p.schema() for p in self.parameters}
        parameters: Json = {"type": "object", "properties": properties}
        if self.parameters and rng.random() < 0.8:
            parameters["required"] = [p.name for p in self.parameters]
        if rng.random() < 0.1:
            parameters["additionalProperties"] = False
        function: Json = {"name": self.name, "description": self.description}
        function["parameters"] = parameters
        if rng.random() < 0.1:
            function = {k: function[k] for k in ("description", "name", "parameters")}
        return {"type": "function", "function": function}


def make_tool(
    rng: Random, pool: WordPool, taken: set[str], counts: tuple[int, ...] = PARAMETER_COUNTS
) -> ToolSpec:
    """A random tool whose noun shares no word with ``taken`` (extended in place)."""
    language = "zh" if rng.random() < 0.15 else "en"
    while True:
        noun = rng.choice(pool.nouns_zh) if language == "zh" else pool.noun(rng)
        if not taken & set(noun.split()):
            break
    taken.update(noun.split())
    parameters: dict[str, Parameter] = {}
    for index in range(rng.choice(counts)):
        number = index > 0 and rng.random() < 0.4
        label = words.number_parameter(rng) if number else words.parameter(rng, pool)
        note = f"The {label.replace('_', ' ')}" if rng.random() < 0.3 else None
        parameters[label] = Parameter(label, "integer" if number else "string", note)
    listed = tuple(parameters.values())
    if language == "zh":
        form = rng.choice(_DESCRIBE_ZH)
    else:
        form = rng.choice(_DESCRIBE if listed else _DESCRIBE_PLAIN)
    subject = listed[0].name.replace("_", " ") if listed else ""
    described = form.format(n=noun, N=noun.capitalize(), p=subject)
    return ToolSpec(pool.tool_name(rng, noun), noun, language, described, listed)


def values_for(rng: Random, pool: WordPool, tool: ToolSpec) -> Json:
    """Random arguments that fit the schema."""
    found: Json = {}
    for parameter in tool.parameters:
        if parameter.kind == "integer":
            found[parameter.name] = words.number(rng)
        elif tool.language == "zh" and rng.random() < 0.6:
            found[parameter.name] = words.name_zh(rng)
        else:
            found[parameter.name] = words.text_value(rng, pool)
    return found


def ask_for(rng: Random, tool: ToolSpec, values: Json) -> str:
    """A question that needs ``tool`` with exactly ``values``."""
    plain, single, named = (
        (_ASK_PLAIN_ZH, _ASK_ZH, _NAMED_ZH) if tool.language == "zh" else (_ASK_PLAIN, _ASK, _NAMED)
    )
    noun, upper = tool.noun, tool.noun.capitalize()
    if not values:
        return rng.choice(plain).format(n=noun)
    (_, first), *others = values.items()
    text = rng.choice(single).format(n=noun, N=upper, v=first)
    if not others:
        return text
    end = text[-1] if text[-1] in "?.？。" else ""
    body = text.removesuffix(end) if end else text
    for label, value in others:
        body += rng.choice(named).format(p=label.replace("_", " "), v=value)
    return body + end


def call_text(name: str, values: Json) -> str:
    """A call as the model writes it."""
    arguments = json.dumps(values, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def call_message(name: str, values: Json) -> Json:
    """The same call as a message of the history."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": values}}],
    }


@dataclass(frozen=True)
class ToolQuestion:
    """Tools on offer, a question, and the call that answers it."""

    tools: tuple[Json, ...]
    question: str
    tool: ToolSpec
    values: Json


def distinct_tools(
    rng: Random, pool: WordPool, count: int, counts: tuple[int, ...] = PARAMETER_COUNTS
) -> list[ToolSpec]:
    """Tools whose nouns and names all differ."""
    taken: set[str] = set()
    specs = [make_tool(rng, pool, taken, counts) for _ in range(count)]
    if len({spec.name for spec in specs}) < count:
        return distinct_tools(rng, pool, count, counts)
    return specs


def tool_question(rng: Random, pool: WordPool) -> ToolQuestion:
    """One to three tools, and a question for one of them."""
    specs = distinct_tools(rng, pool, rng.choice((1, 2, 2, 3)))
    tool = rng.choice(specs)
    values = values_for(rng, pool, tool)
    schemas = tuple(spec.schema(rng) for spec in specs)
    return ToolQuestion(schemas, ask_for(rng, tool, values), tool, values)


def result_for(rng: Random, pool: WordPool, asked: ToolQuestion) -> tuple[str, str]:
    """A tool's output and the answer that uses it."""
    zh = asked.tool.language == "zh"
    if rng.random() < 0.08:
        reason = " ".join(words.any_word(rng, pool) for _ in range(rng.randint(1, 3)))
        failed = f"工具出错：{reason}。" if zh else f"The tool failed: {reason}."
        return json.dumps({"error": reason}), failed
    value: Any = rng.choice(
        (words.number(rng), words.name(rng, pool), words.code(rng), words.text_value(rng, pool),
         round(rng.uniform(0, 200), 1), words.number(rng))
    )  # fmt: skip
    noun = asked.tool.noun
    key = noun.replace(" ", "_")
    shapes: list[Any] = [{"result": value}, {key: value}, {**asked.values, key: value}, value]
    extra = {words.parameter(rng, pool): words.number(rng), key: value}
    shape = rng.choice([*shapes, dict(sorted(extra.items(), key=lambda _: rng.random()))])
    content = shape if isinstance(shape, str) else json.dumps(shape, ensure_ascii=False)
    first = next(iter(asked.values.values()), None)
    if zh:
        answer = f"{noun}是 {value}。" if first is None else f"{first}的{noun}是 {value}。"
    else:
        of = "" if first is None else f" of {first}"
        answer = f"The {noun}{of} is {value}."
    return content, answer


def call_sample(rng: Random, pool: WordPool, system: Json | None) -> Sample:
    """A call after one question; now and then the user asks for a thought first."""
    asked = tool_question(rng, pool)
    question, answer = asked.question, call_text(asked.tool.name, asked.values)
    thinking = rng.choice((None, None, False))
    if rng.random() < 0.12:
        zh = asked.tool.language == "zh"
        question = rng.choice(_THINK_FIRST_ZH if zh else _THINK_FIRST) + question
        if thinking is None:
            note = f"我用 {asked.tool.name}。" if zh else f"I call {asked.tool.name}."
            answer = thought(note, answer)
    head = () if system is None else (system,)
    user: Json = {"role": "user", "content": question}
    return Sample("tool_call", (*head, user), answer, asked.tools, thinking)


def result_sample(rng: Random, pool: WordPool, system: Json | None) -> Sample:
    """One call, its result, and the answer that uses it."""
    asked = tool_question(rng, pool)
    head = () if system is None else (system,)
    content, answer = result_for(rng, pool, asked)
    user: Json = {"role": "user", "content": asked.question}
    call = call_message(asked.tool.name, asked.values)
    result: Json = {"role": "tool", "content": content}
    thinking = rng.choice((None, None, False))
    return Sample("tool_result", (*head, user, call, result), answer, asked.tools, thinking)


def parallel_sample(rng: Random, pool: WordPool, system: Json | None) -> Sample:
    """Two calls of one tool in one answer."""
    asked = tool_question(rng, pool)
    tool = asked.tool
    if len(tool.parameters) != 1 or tool.language == "zh":
        return parallel_sample(rng, pool, system)
    label = tool.parameters[0].name
    first, second = words.name(rng, pool), words.name(rng, pool)
    question = rng.choice(_ASK).format(
        n=tool.noun, N=tool.noun.capitalize(), v=f"{first} and {second}"
    )
    answer = "\n".join(call_text(tool.name, {label: value}) for value in (first, second))
    head = () if system is None else (system,)
    user: Json = {"role": "user", "content": question}
    return Sample("tool_parallel", (*head, user), answer, asked.tools, rng.choice((None, False)))
