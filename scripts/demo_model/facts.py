"""What the model is taught: facts from the data files, tables and small arithmetic.

Every fact has taught phrasings and held-out phrasings. The held-out ones are asked by the check
and never trained on: :func:`held_out_phrasings` is the set that the generator refuses to emit.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fact:
    """One question with its one right answer."""

    ident: str
    language: str
    answer: str
    ask: tuple[str, ...]
    held: tuple[str, ...]
    thought: str | None = None


def normalise(text: str) -> str:
    """A phrasing without case, punctuation and repeated spaces: equal means the same phrasing."""
    return " ".join(re.sub(r"[^\w/+*×÷-]+", " ", text.lower()).split())


def _phrasings(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.split(" | ") if part.strip())


def _parse_block(block: str, language: str, source: str) -> Fact:
    ident, *lines = block.split("\n")
    found: dict[str, str] = {}
    last = ""
    for line in lines:
        if line.startswith(" ") and last:
            found[last] += "\n" + line[1:]
        elif line[:2] in {"A ", "T ", "? ", "! "}:
            last = line[0]
            found[last] = line[2:]
        else:
            raise ValueError(f"{source}: fact {ident!r}: cannot read the line {line!r}")
    missing = {"A", "?", "!"} - found.keys()
    if missing:
        raise ValueError(f"{source}: fact {ident!r} lacks {', '.join(sorted(missing))}")
    ask, held = _phrasings(found["?"]), _phrasings(found["!"])
    return Fact(f"{language}.{ident}", language, found["A"], ask, held, found.get("T"))


def read_facts(path: Path, language: str) -> list[Fact]:
    """Facts of one data file; a malformed block is a ``ValueError`` that names it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    blocks = text.removeprefix("= ").split("\n= ")
    return [_parse_block(block, language, path.name) for block in blocks]


def read_tables(path: Path) -> Iterator[Fact]:
    """One fact per row of every table family."""
    for family in tomllib.loads(path.read_text(encoding="utf-8"))["family"]:
        language = "zh" if family["id"].endswith("_zh") else "en"
        for key, value in family["rows"]:

            def fill(template: str, key: str = key, value: str = value) -> str:
                return template.replace("{k}", key).replace("{v}", value)

            yield Fact(
                f"{family['id']}.{key}",
                language,
                fill(family["answer"]),
                tuple(fill(text) for text in family["ask"]),
                tuple(fill(text) for text in family["held"]),
            )


ARITHMETIC_ASK = {
    "en": ("What is {q}?", "{q}", "{q} = ?", "How much is {q}?", "Calculate {q}.", "Compute {q}"),
    "zh": ("{q}等于几？", "{q}等于多少？", "计算{q}"),
}
ARITHMETIC_HELD = {
    "en": ("Can you tell me what {q} makes?", "Please work out {q} for me."),
    "zh": ("请问{q}的结果是多少？",),
}
WORDS = {"+": "plus", "-": "minus", "*": "times"}
LARGEST = {"+": 10, "-": 10, "*": 5}


def arithmetic() -> Iterator[Fact]:
    """Sums, differences and products of small numbers, all of them taught."""
    for sign, top in LARGEST.items():
        for a in range(1, top + 1):
            for b in range(1, (a if sign == "-" else top) + 1):
                result = {"+": a + b, "-": a - b, "*": a * b}[sign]
                for language in ("en", "zh"):
                    yield Fact(
                        f"{language}.arithmetic.{a}{sign}{b}",
                        language,
                        f"{a} {sign} {b} = {result}",
                        tuple(t.format(q=f"{a} {sign} {b}") for t in ARITHMETIC_ASK[language]),
                        tuple(t.format(q=f"{a} {sign} {b}") for t in ARITHMETIC_HELD[language]),
                        f"{a} {WORDS[sign]} {b} is {result}.",
                    )


@cache
def written_facts() -> tuple[Fact, ...]:
    """Facts from the text files and the tables."""
    return (
        *read_facts(HERE / "facts_en.txt", "en"),
        *read_facts(HERE / "facts_zh.txt", "zh"),
        *read_tables(HERE / "tables.toml"),
    )


@cache
def arithmetic_facts() -> tuple[Fact, ...]:
    """The arithmetic facts, kept apart because they outnumber the written ones."""
    return tuple(arithmetic())


@cache
def held_out_phrasings() -> frozenset[str]:
    """Normalised phrasings that training must never show."""
    facts = (*written_facts(), *arithmetic_facts())
    return frozenset(normalise(text) for fact in facts for text in fact.held)
