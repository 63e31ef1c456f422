"""Muon for the matrices inside the blocks, AdamW for embeddings and norms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from demo_model.mixture import POLISH
from demo_model.model import DemoModel


@dataclass(frozen=True)
class Rates:
    """Peak learning rates and the shape of their schedule.

    They are low: at two to three times these rates the circuits that were written into the
    network are gone after fifty steps (calls among several tools fall back to guessing).
    """

    attention: float = 0.007
    feed_forward: float = 0.012
    other: float = 2e-3
    warm_up: float = 0.02
    decay_from: float = 0.37
    last: float = 0.01
    polish: float = 0.25

    def factor(self, progress: float) -> float:
        """Warm up, hold, fall along a cosine to ``last``; once more from ``polish`` at the end."""
        if progress < self.warm_up:
            return max(progress / self.warm_up, 0.05)
        if progress < self.decay_from:
            return 1.0
        if progress < POLISH:
            return self._fall(1.0, (progress - self.decay_from) / (POLISH - self.decay_from))
        return self._fall(self.polish, min((progress - POLISH) / (1 - POLISH), 1.0))

    def _fall(self, first: float, along: float) -> float:
        return self.last + (first - self.last) * 0.5 * (1 + math.cos(math.pi * along))


class Optimizer:
    """Both optimizers behind one step."""

    def __init__(self, model: DemoModel, rates: Rates) -> None:
        matrices = [(name, w) for name, w in model.blk.named_parameters() if w.ndim == 2]
        attention = [w for name, w in matrices if "attn" in name]
        feed_forward = [w for name, w in matrices if "attn" not in name]
        chosen = {id(weight) for _, weight in matrices}
        others = [w for w in model.parameters() if id(w) not in chosen]
        self._rates = rates
        self._muon = torch.optim.Muon(
            [
                {"params": attention, "peak": rates.attention},
                {"params": feed_forward, "peak": rates.feed_forward},
            ],
            weight_decay=0.02,
            momentum=0.95,
            nesterov=True,
        )
        self._adam = torch.optim.AdamW(
            [{"params": others, "peak": rates.other}], betas=(0.9, 0.95), weight_decay=0.01
        )

    def step(self, progress: float) -> None:
        """One update with the rates that belong to ``progress``, then clear the gradients."""
        factor = self._rates.factor(progress)
        for optimizer in (self._muon, self._adam):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, object]:
        """What a checkpoint needs."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load(self, state: dict[str, dict[str, object]]) -> None:
        """Go on from a checkpoint."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
