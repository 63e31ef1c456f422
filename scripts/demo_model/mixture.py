"""The stream of training samples: which tasks, how often, and when.

Copying comes first: tools and extraction stand on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Any

from demo_model import task_chat, task_copy, task_realistic, task_sessions, task_tools
from demo_model.samples import Sample
from demo_model.words import WordPool, training_pool

Message = dict[str, Any]
Task = Callable[[Random, WordPool, Message | None], Sample]

WARM_UP = 0.08  # share of the training in which copying and choosing tools dominate
LATE = 0.44  # from here on tools and extraction, which are learned last, come more often
POLISH = 0.92  # from here on calls above all, with names of pieces that are rare elsewhere
SHORT_TEXT, LONG_TEXT = 12, 110  # sentences in a needle's haystack


def _fact(rng: Random, _pool: WordPool, system: Message | None) -> Sample:
    return task_chat.fact_sample(rng, system)


def _fact_with_tools(rng: Random, pool: WordPool, system: Message | None) -> Sample:
    tools = task_tools.tool_question(rng, pool).tools
    return task_chat.fact_sample(rng, system, tools)


def _persona(rng: Random, pool: WordPool, _system: Message | None) -> Sample:
    return task_chat.persona_sample(rng, pool)


def _count(rng: Random, _pool: WordPool, system: Message | None) -> Sample:
    return task_chat.count_sample(rng, system)


def _needle(rng: Random, pool: WordPool, system: Message | None) -> Sample:
    longest = LONG_TEXT if rng.random() < 0.08 else SHORT_TEXT
    return task_copy.needle_sample(rng, pool, system, longest)


def _arithmetic(rng: Random, _pool: WordPool, system: Message | None) -> Sample:
    return task_chat.arithmetic_sample(rng, system)


# Weights while warming up, in the middle, late and while polishing, and the task.
TASKS: tuple[tuple[float, float, float, float, Task], ...] = (
    (10, 40, 30, 20, _fact),
    (2, 2, 3, 3, _arithmetic),
    (40, 9, 6, 8, task_copy.repeat_sample),
    (15, 9, 12, 8, task_copy.record_sample),
    (5, 4, 7, 5, task_copy.kind_sample),
    (4, 3, 3, 4, _needle),
    (2, 2, 3, 2, task_copy.json_sample),
    (40, 9, 6, 10, task_sessions.drill_sample),
    (6, 6, 9, 25, task_tools.call_sample),
    (2, 1.5, 3, 5, task_tools.result_sample),
    (6, 10, 11, 12, task_sessions.session_sample),
    (2, 4, 5, 6, task_realistic.realistic_sample),
    (0, 1, 1.5, 2, task_tools.parallel_sample),
    (0, 1, 2.5, 3, _fact_with_tools),
    (2, 2.5, 2, 3, _persona),
    (2, 2, 1.5, 2, task_chat.memory_sample),
    (1, 1.5, 0.7, 3, _count),
    (0, 2.5, 1.2, 2, task_chat.unknown_sample),
)


def system_for(rng: Random) -> Message | None:
    """No system prompt in half of the samples, a general one in the others."""
    if rng.random() < 0.55:
        return None
    return {"role": "system", "content": rng.choice(task_chat.SYSTEM_PROMPTS)}


def draw(rng: Random, pool: WordPool, progress: float) -> Sample:
    """One sample; ``progress`` runs from 0 to 1 over the training."""
    stage = sum(progress >= start for start in (WARM_UP, LATE, POLISH))
    *_, task = rng.choices(TASKS, [row[:4][stage] for row in TASKS])[0]
    return task(rng, pool, system_for(rng))


def stream(seed: int, progress: Callable[[], float]) -> Iterator[Sample]:
    """Endless samples, the same for the same seed and the same progress."""
    rng, pool, rare = Random(seed), training_pool(), training_pool(spelled=0.5)
    while True:
        at = progress()
        yield draw(rng, pool if at < POLISH else rare, at)


# Families whose words are worth tokens of their own; the others are mostly made-up words.
_WORDY = frozenset({"fact", "fact_with_tools", "unknown", "count"})


def corpus(seed: int, count: int) -> list[str]:
    """Texts to learn the tokenizer from: real sentences, and a few of everything else."""
    samples = islice(stream(seed, lambda: 0.5), count)
    rng = Random(seed)
    kept = (s for s in samples if s.family in _WORDY or rng.random() < 0.04)
    return [sample.prompt() + sample.completion() for sample in kept]
