"""Samples as token ids with a mask of what to learn, and batches of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.samples import END, Sample

OPEN_ASSISTANT = "<|im_start|>assistant\n"
LEARN_HISTORY = frozenset({"tool_result", "tool_session", "extract", "fact", "arithmetic"})
# In these a thought may come first when the turn is written, but never shows in a history.
FIRST_UNLEARNED = frozenset({"arithmetic"})
SPLIT_SHARE = 0.3
CHOICE = 4.0  # weight of the tokens that decide for a tool and for its first parameter
_CHOICES = re.compile(r'\{"name": "|"arguments": \{"')


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each how much the model should learn to produce it; 0 is not at all."""

    ids: list[int]
    learn: list[float]


def _pieces(sample: Sample, rng: Random) -> list[tuple[str, bool]]:
    """The text of a sample in pieces, with what is to be learned.

    In a share of the samples the prompt is cut around the texts that came from outside, as a
    server does that keeps users' text from becoming control tokens.
    """
    prompt = sample.prompt()
    pieces: list[tuple[str, bool]] = []
    if sample.family in LEARN_HISTORY:
        *turns, last = prompt.split(OPEN_ASSISTANT)
        pieces.append((turns[0] + OPEN_ASSISTANT, False))
        for turn in turns[1:]:
            answer, _, rest = turn.partition(END)
            skip = 1 if sample.family in FIRST_UNLEARNED else 0
            pieces += [(answer[:skip], False), (answer[skip:] + END, True)]
            pieces.append((rest + OPEN_ASSISTANT, False))
        pieces.append((last, False))
    elif rng.random() < SPLIT_SHARE:
        for content in sample.contents():
            head, found, tail = prompt.partition(content)
            if found:
                pieces += [(head, False), (content, False)]
                prompt = tail
        pieces.append((prompt, False))
    else:
        pieces.append((prompt, False))
    return [*pieces, (sample.completion(), True)]


def encode(sample: Sample, tokenizer: Tokenizer, rng: Random) -> Encoded:
    """Tokenize one sample piece by piece."""
    ids: list[int] = []
    learn: list[float] = []
    for text, wanted in _pieces(sample, rng):
        found = tokenizer.encode(text, add_special_tokens=False)
        ids += found.ids
        learn += _weights(text, found.offsets) if wanted else [0.0] * len(found.ids)
    return Encoded(ids, learn)


def _weights(text: str, offsets: list[tuple[int, int]]) -> list[float]:
    """One for every token, more for the first pieces of a called tool's name and parameter."""
    weights = [1.0] * len(offsets)
    for before in _CHOICES.finditer(text):
        decisive = next((i for i, (_, end) in enumerate(offsets) if end > before.end()), None)
        if decisive is not None:
            weights[decisive] = CHOICE
    return weights


@dataclass(frozen=True)
class Batch:
    """Padded rows: ``ids`` (rows, time) and for each token the weight ``learn`` of learning it."""

    ids: Tensor
    learn: Tensor

    @property
    def tokens(self) -> int:
        """Cells computed, padding included."""
        return self.ids.numel()


def collate(rows: list[Encoded], pad: int, multiple: int = 8) -> Batch:
    """Pad rows on the right; causal attention never looks there."""
    longest = max(len(row.ids) for row in rows)
    width = -(-longest // multiple) * multiple
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    learn = torch.zeros((len(rows), width))
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        learn[index, : len(row.ids)] = torch.tensor(row.learn)
    return Batch(ids, learn)


def batches(
    samples: Iterator[Sample],
    tokenizer: Tokenizer,
    rng: Random,
    *,
    cells: int,
    parts: int,
    longest: int,
) -> Iterator[list[Batch]]:
    """Lists of ``parts`` batches of about ``cells`` cells, rows of like length together."""
    pad = tokenizer.token_to_id("<|endoftext|>")
    while True:
        pool: list[Encoded] = []
        room = cells * parts * 8
        while room > 0:
            row = encode(next(samples), tokenizer, rng)
            if len(row.ids) <= longest:
                pool.append(row)
                room -= len(row.ids)
        pool.sort(key=lambda row: len(row.ids))
        made: list[Batch] = []
        rows: list[Encoded] = []
        for row in pool:
            if rows and (len(rows) + 1) * len(row.ids) > cells:
                made.append(collate(rows, pad))
                rows = []
            rows.append(row)
        made.append(collate(rows, pad))
        rng.shuffle(made)
        for start in range(0, len(made) - parts + 1, parts):
            yield made[start : start + parts]
