"""Train the toy model that onegpu ships with and write it as a GGUF file.

    pip install -r scripts/demo_model/requirements.in
    python scripts/train_demo_model.py

The data is generated (seeded), the tokenizer is learned from it, the network has Qwen3's
architecture. A run takes about half an hour on two idle CPU cores; it keeps a checkpoint in --work
and goes on from there when it is started again. On cores that others use too, start it with
OMP_WAIT_POLICY=PASSIVE in the environment. At the end a part of the held-out check runs in torch;
`scripts/check_demo_model.py` asks the exported file itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo_model import grading
from demo_model.train import Plan, Trainer, evaluate

ROOT = Path(__file__).resolve().parent.parent


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    plan = Plan()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=plan.steps, help="training steps (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=plan.seed, help="seed of everything (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=plan.threads, help="CPU threads (%(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "demo_model", help="checkpoints (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "models" / "demo.gguf", help="result (%(default)s)"
    )
    parser.add_argument(
        "--evaluate-every", type=int, default=plan.evaluate_every, help="steps (%(default)s)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Train, check, export."""
    options = parse()
    plan = Plan(
        seed=options.seed,
        steps=options.steps,
        threads=options.threads,
        evaluate_every=options.evaluate_every,
    )
    trainer = Trainer(plan, options.work)
    if trainer.resume():
        print(f"going on from step {trainer.step}")
    size = sum(weight.numel() for weight in trainer.model.parameters())
    print(f"{size:,} parameters, {trainer.tokenizer.get_vocab_size()} tokens in the vocabulary")
    trainer.run()
    print(f"trained for {trainer.seconds / 60:.1f} minutes")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    trainer.export(options.out)
    print(f"wrote {options.out}: {options.out.stat().st_size / 1e6:.2f} MB")
    print(grading.table(evaluate(trainer.model, trainer.tokenizer, 100)))


if __name__ == "__main__":
    main()
