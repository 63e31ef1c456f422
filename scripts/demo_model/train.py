"""The training run: tokenizer, batches, steps, checkpoints, evaluation, export."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch.nn import functional as fn

from demo_model import grading, mixture
from demo_model.encoding import Batch, batches
from demo_model.export import export
from demo_model.generate import answer_all
from demo_model.induction import install
from demo_model.model import DemoModel, ModelShape
from demo_model.optimizer import Optimizer, Rates
from demo_model.tokenizer import train_tokenizer

CORPUS_SAMPLES = 30_000


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out of a run."""

    seed: int = 1
    steps: int = 2500
    cells: int = 4096
    parts: int = 2
    longest: int = 1600
    vocab: int = 3072
    space_words: int = 600
    layers: int = 5
    ffn: int = 512
    threads: int = 2
    evaluate_every: int = 200
    save_every: int = 100
    rates: Rates = field(default_factory=Rates)


@dataclass
class Meter:
    """Running averages between two lines of progress."""

    started: float = field(default_factory=time.monotonic)
    loss: float = 0.0
    learned: float = 0.0
    cells: int = 0

    def line(self, step: int, steps: int) -> str:
        """Progress with loss, speed and the time that is left."""
        speed = self.cells / max(time.monotonic() - self.started, 1e-9)
        loss = self.loss / max(self.learned, 1.0)
        return f"step {step}/{steps}  loss {loss:.4f}  {speed:,.0f} cells/s"


def load_tokenizer(plan: Plan, work: Path) -> Tokenizer:
    """The tokenizer of this work folder, learned from the corpus on the first run."""
    path = work / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    texts = mixture.corpus(plan.seed, CORPUS_SAMPLES)
    tokenizer = train_tokenizer(texts, plan.vocab, plan.space_words)
    tokenizer.save(str(path))
    return tokenizer


def loss_of(model: DemoModel, batch: Batch) -> torch.Tensor:
    """Cross-entropy over the tokens to be learned, summed with their weights."""
    weights = batch.learn.roll(-1, dims=1)
    weights[:, -1] = 0.0
    keep = weights > 0
    targets = batch.ids.roll(-1, dims=1)[keep]
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.logits(model(batch.ids, keep=keep))
    losses = fn.cross_entropy(scores.float(), targets, reduction="none")
    return (losses * weights[keep]).sum()


def evaluate(model: DemoModel, tokenizer: Tokenizer, count: int) -> list[grading.Score]:
    """A seeded part of the held-out check, asked in torch."""
    chosen = grading.sampled(grading.questions(count=count), count)
    prompts = [question.sample.prompt() for question in chosen]
    model.eval()
    replies = answer_all(model, tokenizer, prompts)
    model.train()
    return grading.score(zip(chosen, replies, strict=True))


class Trainer:
    """One run in a work folder; it goes on from the last checkpoint it finds there."""

    def __init__(self, plan: Plan, work: Path) -> None:
        self.plan, self.work = plan, work
        work.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(plan.threads)
        torch.manual_seed(plan.seed)
        self.tokenizer = load_tokenizer(plan, work)
        vocab = self.tokenizer.get_vocab_size()
        self.model = DemoModel(ModelShape(vocab, layers=plan.layers, ffn=plan.ffn))
        texts = [self.tokenizer.decode([i], skip_special_tokens=False) for i in range(vocab)]
        name, properties = map(self.tokenizer.token_to_id, ("name", "properties"))
        install(self.model, texts, (name, properties))
        self.optimizer = Optimizer(self.model, plan.rates)
        self.step = 0
        self.seconds = 0.0

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept between runs."""
        return self.work / "checkpoint.pt"

    def resume(self) -> bool:
        """Load the checkpoint if there is one."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=False)
        if state["plan"] != asdict(self.plan):
            raise ValueError(f"{self.checkpoint} belongs to another plan; remove it or use --work")
        self.model.load_state_dict(state["model"])
        self.optimizer.load(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def save(self) -> None:
        """Write the checkpoint in one move."""
        part = self.checkpoint.with_suffix(".part")
        state = {
            "plan": asdict(self.plan),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, part)
        part.replace(self.checkpoint)

    def progress(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return self.step / self.plan.steps

    def run(self) -> None:
        """Train to the end of the plan."""
        plan = self.plan
        seed = plan.seed * 1_000_003 + self.step
        source = mixture.stream(seed, self.progress)
        groups = batches(
            source,
            self.tokenizer,
            Random(seed),
            cells=plan.cells,
            parts=plan.parts,
            longest=plan.longest,
        )
        meter = Meter()
        while self.step < plan.steps:
            began = time.monotonic()
            self._one_step(next(groups), meter)
            self.seconds += time.monotonic() - began
            if self.step % 25 == 0:
                left = self.seconds / self.step * (plan.steps - self.step)
                print(f"{meter.line(self.step, plan.steps)}  left {left / 60:.1f} min", flush=True)
                meter = Meter()
            if self.step % plan.save_every == 0:
                self.save()
            if self.step % plan.evaluate_every == 0 and self.step < plan.steps:
                print(grading.table(evaluate(self.model, self.tokenizer, 30)), flush=True)
                meter = Meter()
        self.save()

    def _one_step(self, group: list[Batch], meter: Meter) -> None:
        wanted = sum(float(batch.learn[:, 1:].sum()) for batch in group)
        for batch in group:
            loss = loss_of(self.model, batch)
            (loss / wanted).backward()
            meter.loss += float(loss.detach())
            meter.cells += batch.tokens
        meter.learned += wanted
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step(self.progress())
        self.step += 1

    def export(self, path: Path) -> None:
        """Write the GGUF."""
        export(self.model, self.tokenizer, path)
