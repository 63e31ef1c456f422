"""What both sides of the comparison are told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = ("time", "people", "water", "river", "house", "light", "north", "story")


@dataclass(frozen=True)
class Load:
    """What a side loads. Everything else is the server's default, mirrored by the bare loop."""

    model: Path
    slots: int
    threads: int
    n_ctx: int
    n_batch: int = 512


@dataclass(frozen=True)
class Job:
    """One run: N sequences of `words` words each, `tokens` generated per sequence."""

    tokens: int
    words: int
    greedy: bool
    top_k: int = 40
    top_p: float = 0.95
    temperature: float = 0.8

    @property
    def room(self) -> int:
        """Context that a sequence needs, generously: words may take several tokens."""
        return max(512, -(-(self.tokens + self.words * 5 + 64) // 256) * 256)

    def describe(self) -> str:
        """Say what is compared."""
        chain = "greedy" if self.greedy else f"top_k {self.top_k}, top_p {self.top_p}, "
        if not self.greedy:
            chain += f"temperature {self.temperature}, seeded draw"
        return f"prompts of {self.words} words, {self.tokens} tokens each, {chain}"


def prompt(sequence: int, words: int) -> str:
    """Return the prompt of one sequence, different from the others' from the first word on."""
    chosen = [WORDS[(sequence * 3 + i * (1 + sequence % 5)) % len(WORDS)] for i in range(words)]
    return " ".join([WORDS[sequence % len(WORDS)], str(sequence), *chosen])


def serve_lines(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer each JSON line on standard input with one on standard output, until input ends."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
