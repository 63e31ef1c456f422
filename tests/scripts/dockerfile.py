"""Reads Dockerfile.cuda: what its tests look at, and which of its steps they run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "scripts" / "container"


@dataclass(frozen=True)
class Instruction:
    """One instruction of one stage, its line continuations joined."""

    stage: int
    word: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its arguments without flags."""
        return [part for part in shlex.split(self.text) if not part.startswith("--")]


def read_dockerfile() -> list[Instruction]:
    text = (ROOT / "Dockerfile.cuda").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stage, found = -1, []
    for line in joined.splitlines():
        word, rest = line.split(maxsplit=1)
        stage += word == "FROM"
        found.append(Instruction(stage, word, rest))
    return found


FILE = read_dockerfile()
LAST = max(instruction.stage for instruction in FILE)


def all_of(word: str, stage: int | None = None) -> list[Instruction]:
    return [i for i in FILE if i.word == word and stage in (None, i.stage)]


def copied(stage: int) -> list[tuple[list[str], str]]:
    """Sources in the checkout, and target, of every COPY of a stage."""
    found = [i for i in all_of("COPY", stage) if "--from=" not in i.text]
    return [(i.words[:-1], i.words[-1]) for i in found]
