"""Greedy generation in torch, many prompts at once, to watch quality during training."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.model import DemoModel, KvCache
from demo_model.samples import END


@torch.no_grad()
def _generate_batch(model: DemoModel, prompts: list[list[int]], stop: int, most: int) -> Tensor:
    """New tokens (rows, time); prompts are padded on the left and the padding masked."""
    longest = max(map(len, prompts))
    rows = len(prompts)
    ids = torch.zeros((rows, longest), dtype=torch.long)
    valid = torch.zeros((rows, longest), dtype=torch.bool)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        valid[index, longest - len(prompt) :] = True
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    eye = torch.eye(longest, dtype=torch.bool)
    mask = (valid[:, None, None] & torch.ones_like(eye).tril()) | eye
    caches = [KvCache() for _ in range(model.shape.layers)]
    hidden = model(ids, positions, mask, caches)
    last = positions[:, -1:]
    made: list[Tensor] = []
    done = torch.zeros(rows, dtype=torch.bool)
    for _ in range(most):
        token = model.logits(hidden[:, -1]).argmax(-1)
        made.append(token)
        done |= token == stop
        if bool(done.all()):
            break
        last = last + 1
        valid = torch.cat([valid, torch.ones((rows, 1), dtype=torch.bool)], dim=1)
        hidden = model(token[:, None], last, valid[:, None, None], caches)
    return torch.stack(made, dim=1)


def answer_all(
    model: DemoModel, tokenizer: Tokenizer, prompts: list[str], most: int = 160, rows: int = 48
) -> list[str]:
    """Greedy replies to rendered prompts, in their order, without the end mark."""
    stop = tokenizer.token_to_id(END)
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    replies = [""] * len(prompts)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        made = _generate_batch(model, [encoded[index] for index in chosen], stop, most)
        for index, tokens in zip(chosen, made.tolist(), strict=True):
            kept = tokens[: tokens.index(stop)] if stop in tokens else tokens
            replies[index] = tokenizer.decode(kept, skip_special_tokens=False)
    return replies
