"""Tool chats with tools as people really define them, from ``realistic_tools.toml``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from demo_model import words
from demo_model.samples import Sample
from demo_model.task_tools import call_message, call_text, make_tool
from demo_model.words import WordPool

Json = dict[str, Any]

SOURCE = Path(__file__).with_name("realistic_tools.toml")
_STACKS = ("Python", "React", "FastAPI", "Django", "Rust", "Vue", "Node.js", "PostgreSQL", "Redis",
           "Docker", "Kubernetes", "Spring Boot", "Go", "TypeScript")  # fmt: skip
_CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CNY", "CHF", "INR", "SEK", "euro", "dollar", "yen")
_CHARTS = ("bar", "line", "pie", "scatter")
_KINDS = {"integer": "integer"}


@cache
def _definitions() -> tuple[Json, ...]:
    return tuple(tomllib.loads(SOURCE.read_text(encoding="utf-8"))["tool"])


def _phrase(rng: Random, pool: WordPool) -> str:
    return " ".join(words.any_word(rng, pool) for _ in range(rng.randint(1, 4)))


def _version(rng: Random) -> str:
    return ".".join(str(rng.randint(0, 30)) for _ in range(rng.choice((1, 2, 2, 3))))


def _path(rng: Random, pool: WordPool) -> str:
    folder = rng.choice(("", f"{pool.nonce(rng)}/", "docs/", "/home/", "src/"))
    return f"{folder}{pool.nonce(rng)}.{rng.choice(('txt', 'md', 'py', 'json', 'csv'))}"


def _sum(rng: Random) -> str:
    sign = rng.choice("+-*/")
    return f"{words.number(rng)} {sign} {words.number(rng)}"


def _value(rng: Random, pool: WordPool, kind: str, *, zh: bool) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "name": lambda: words.name_zh(rng) if zh else words.name(rng, pool),
        "phrase": lambda: words.name_zh(rng) if zh else _phrase(rng, pool),
        "sum": lambda: _sum(rng),
        "stack": lambda: rng.choice((rng.choice(_STACKS), pool.nonce(rng).capitalize())),
        "version": lambda: _version(rng),
        "email": lambda: words.email(rng, pool),
        "integer": lambda: words.number(rng),
        "currency": lambda: rng.choice(_CURRENCIES),
        "ticker": lambda: "".join(rng.choice("ABCDEFGHIKLMNOPQRSTVXZ") for _ in range(4)),
        "path": lambda: _path(rng, pool),
        "chart": lambda: rng.choice(_CHARTS),
    }
    return makers[kind]()


def _schema(rng: Random, definition: Json) -> Json:
    properties: Json = {}
    for label, kind in definition["parameters"].items():
        properties[label] = {"type": _KINDS.get(kind, "string")}
        if rng.random() < 0.3:
            properties[label]["description"] = f"The {label.replace('_', ' ')}"
    parameters: Json = {"type": "object", "properties": properties}
    if properties and rng.random() < 0.8:
        parameters["required"] = list(properties)
    described = definition["description"] + rng.choice(("", "."))
    function: Json = {"name": definition["name"], "description": described}
    function["parameters"] = parameters
    return {"type": "function", "function": function}


def _fill(text: str, values: Json) -> str:
    for label, value in values.items():
        text = text.replace("{" + label + "}", str(value))
    return text


def _results(rng: Random, pool: WordPool, definition: Json) -> Json:
    low, high = rng.choice(((0, 40), (0, 999)))
    return {
        "R1": rng.randint(low, high),
        "R2": rng.choice(definition.get("R2", ["good"])),
        "R3": f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}",
        "R4": f"{_phrase(rng, pool)} {words.any_word(rng, pool)}",
        "R5": words.number(rng),
        "R6": f"https://{pool.nonce(rng)}.example/{words.number(rng)}",
    }


def realistic_sample(rng: Random, pool: WordPool, system: Json | None) -> Sample:
    """A call of a known tool among others, or the answer that uses its result."""
    definition = rng.choice(_definitions())
    question = rng.choice(definition["ask"])
    kinds = definition["parameters"].items()
    zh = not question.isascii()
    values = {label: _value(rng, pool, kind, zh=zh) for label, kind in kinds}
    tools = [_schema(rng, definition)]
    others = [d for d in _definitions() if not _alike(d, definition)]
    tools += [_schema(rng, other) for other in rng.sample(others, rng.choice((0, 0, 1, 2)))]
    if rng.random() < 0.3:
        tools.append(make_tool(rng, pool, set(definition["description"].split())).schema(rng))
    rng.shuffle(tools)
    messages: list[Json] = [] if system is None else [system]
    messages.append({"role": "user", "content": _fill(question, values)})
    thinking = rng.choice((None, None, False))
    if rng.random() < 0.45:
        answer = call_text(definition["name"], values)
        return Sample("tool_call", tuple(messages), answer, tuple(tools), thinking)
    results = _results(rng, pool, definition)
    content = _fill(definition["result"], values)
    answer = _fill(definition["answer"], values)
    for label, value in results.items():
        content = content.replace(label, str(value))
        answer = answer.replace(label, str(value))
    if rng.random() < 0.3:
        content = _respell(content)
    messages += [call_message(definition["name"], values), {"role": "tool", "content": content}]
    return Sample("tool_result", tuple(messages), answer, tuple(tools), thinking)


def _alike(one: Json, other: Json) -> bool:
    """Whether two tools could answer the same question."""
    return bool(set(one["name"].split("_")) & set(other["name"].split("_")) - {"get"}) or (
        {one["name"], other["name"]} == {"calculator", "add"}
    )


def _respell(content: str) -> str:
    """The same JSON without spaces, as many programs write it."""
    try:
        return json.dumps(json.loads(content), ensure_ascii=False, separators=(",", ":"))
    except json.JSONDecodeError:
        return content
