"""Muon for the matrices inside the blocks, AdamW for embeddings and norms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from demo_model.model import DemoModel


@dataclass(frozen=True)
class Rates:
    """Peak learning rates and the shape of their schedule."""

    matrix: float = 0.02
    other: float = 4e-3
    warm_up: float = 0.02
    decay_from: float = 0.4
    last: float = 0.01

    def factor(self, progress: float) -> float:
        """Warm up, hold, then fall along a cosine to ``last``."""
        if progress < self.warm_up:
            return max(progress / self.warm_up, 0.05)
        if progress < self.decay_from:
            return 1.0
        along = min((progress - self.decay_from) / (1 - self.decay_from), 1.0)
        return self.last + (1 - self.last) * 0.5 * (1 + math.cos(math.pi * along))


class Optimizer:
    """Both optimizers behind one step."""

    def __init__(self, model: DemoModel, rates: Rates) -> None:
        matrices = [w for w in model.blk.parameters() if w.ndim == 2]
        chosen = {id(weight) for weight in matrices}
        others = [w for w in model.parameters() if id(w) not in chosen]
        self._rates = rates
        self._muon = torch.optim.Muon(
            matrices, lr=rates.matrix, weight_decay=0.02, momentum=0.95, nesterov=True
        )
        self._adam = torch.optim.AdamW(others, lr=rates.other, betas=(0.9, 0.95), weight_decay=0.01)

    def step(self, progress: float) -> None:
        """One update with the rates that belong to ``progress``, then clear the gradients."""
        factor = self._rates.factor(progress)
        for optimizer, peak in ((self._muon, self._rates.matrix), (self._adam, self._rates.other)):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, object]:
        """What a checkpoint needs."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load(self, state: dict[str, dict[str, object]]) -> None:
        """Go on from a checkpoint."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
