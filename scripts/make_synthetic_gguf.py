"""Write a GGUF with random weights in the exact shape of a named model: measure a card before downloading 20 GB.

    python scripts/make_synthetic_gguf.py 32b build/qwen3-32b-Q4_K_M.gguf

Tensor types are those that llama.cpp's quantizer chooses for Q4_K_M. The vocabulary has Qwen's size
and Qwen3's special tokens at their own ids, with made-up merges. The answers are noise; speed and
memory are the real model's. Tensors are written one after the other, so 20 GB need little memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from synthetic.rounds import Rounds
from synthetic.shapes import SHAPES, Shape, find_shape
from synthetic.writer import Progress, write_shape


def write(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    header_only: bool = False,
    layers: int | None = None,
    rounds: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the shape called `name` to `out`; `layers` takes fewer or more of them than it has.

    With `rounds` it says the same so many tokens again and again (`synthetic.rounds`).

    Raises `KeyError` for a name that is not known, `OSError` when the disk is too full or `out` is
    somebody's file.
    """
    full, shape = find_shape(name)
    if layers is not None:
        full, shape = f"{full} ({layers} layers)", replace(shape, layers=layers)
    going_round = None if rounds is None else Rounds(shape, rounds, seed)
    write_shape(
        shape,
        full,
        out,
        seed=seed,
        header_only=header_only,
        rounds=going_round,
        progress=progress,
    )


class Meter:
    """Shows progress on stderr: a line rewritten twice a second on a terminal, else a line every 10 %."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = 0.0
        self._live = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Take bytes written, and all of them."""
        elapsed = time.monotonic() - self._began
        step, now = (0.5, elapsed) if self._live else (0.1, done / total)
        if now - self._shown < step and done < total:
            return
        self._shown = now
        speed = done / max(elapsed, 1e-9)
        left = (total - done) / speed
        text = (
            f"{done / 1e9:.2f} of {total / 1e9:.2f} GB ({done / total:.0%}), {speed / 1e6:.0f} MB/s, "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )
        end = "\n" if not self._live or done == total else ""
        sys.stderr.write(("\r\x1b[K" if self._live else "") + text + end)
        sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"shapes: {', '.join(SHAPES)}; qwen3- may be left out, and : is as good as -",
    )
    parser.add_argument("shape", metavar="SHAPE", type=_known, help="whose dimensions to take")
    parser.add_argument("out", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights [0]")
    parser.add_argument(
        "--layers", type=_positive, metavar="N", help="so many layers instead of the model's own"
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help="greedy text says the same N tokens again and again",
    )
    parser.add_argument(
        "--header-only", action="store_true", help="leave the weights as a hole of the right size"
    )
    asked = parser.parse_args(argv)
    try:
        write(
            asked.shape,
            asked.out,
            seed=asked.seed,
            header_only=asked.header_only,
            layers=asked.layers,
            rounds=asked.rounds,
            progress=Meter(),
        )
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; nothing is left of it.\n")
        return 130
    sys.stdout.write(f"{asked.out}: {asked.out.stat().st_size:,} bytes\n")
    return 0


def _known(name: str) -> str:
    try:
        return find_shape(name)[0]
    except KeyError:
        message = f"{name!r} is not known; there are {', '.join(SHAPES)}"
        raise argparse.ArgumentTypeError(message) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"{text!r} is not a number from 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


__all__ = ["SHAPES", "Shape", "main", "write"]

if __name__ == "__main__":
    raise SystemExit(main())
