"""LoRA adapters for tests/models.py's random model, sound and broken, and models they are merged into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from tests.models import (
    Floats,
    ModelSpec,
    add_tokenizer,
    finish,
    successors,
    tensors_of,
    vocabulary,
    write_model,
)


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA adapter for the random model: weight + scale × alpha / rank × B·A. The defaults are sound."""

    targets: tuple[str, ...] = ("attn_q", "attn_v", "ffn_down", "token_embd", "output")
    """Weights that it changes, those of a block in every block."""
    rank: int = 4
    alpha: float = 8.0
    seed: int = 100
    strength: float = 0.5
    """Standard deviation of B·A's elements, times the square root of the weight's columns."""
    rewired: tuple[tuple[bytes, bytes], ...] = ()
    """For a scripted model, in place of all above: pieces, and what follows each of them from now on."""
    # What can be wrong with a file:
    general_type: str = "adapter"
    adapter_type: str = "lora"
    architecture: str = "qwen3"
    tokenizer: bool = False
    activated: bool = False
    norms: bool = False
    only_a: bool = False
    other_rank: bool = False


def lora_matrices(spec: AdapterSpec, base: ModelSpec) -> dict[str, tuple[Floats, Floats]]:
    """Weight name → A (rank, columns) and B (rows, rank); for token embeddings A (rows, rank) and B (columns, rank)."""
    if spec.rewired:
        return {"output.weight": _rewiring(spec, base)}
    random = np.random.default_rng(spec.seed)
    made: dict[str, tuple[Floats, Floats]] = {}
    for name, weight in tensors_of(base):
        if name.removesuffix(".weight").split(".")[-1] not in spec.targets:
            continue
        rows, columns = weight.shape
        a = random.standard_normal((spec.rank, columns), dtype=np.float32)
        b = random.standard_normal((rows, spec.rank), dtype=np.float32)
        b *= np.float32(spec.strength * spec.rank**0.5 / spec.alpha / columns**0.5)
        made[name] = (b, a.T.copy()) if name == "token_embd.weight" else (a, b)
    return made


def _rewiring(spec: AdapterSpec, base: ModelSpec) -> tuple[Floats, Floats]:
    """Take each piece's embedding from its successor's output row and add it to the new one's."""
    weights, vocab, following = dict(tensors_of(base)), vocabulary(base), successors(base)
    pieces = [vocab.id_of(piece) for piece, _ in spec.rewired]
    a = 2 * weights["token_embd.weight"][pieces]
    b = np.zeros((len(vocab.texts), len(pieces)), dtype=np.float32)
    for column, (piece, (_, wanted)) in enumerate(zip(pieces, spec.rewired, strict=True)):
        b[following[piece], column] -= 1
        b[vocab.id_of(wanted), column] += 1
    return a, b * np.float32(len(pieces) / spec.alpha)


def write_adapter(path: Path, spec: AdapterSpec, base: ModelSpec) -> Path:
    """Write the GGUF of an adapter for the model of `base` to `path` and return it."""
    writer = gguf.GGUFWriter(path, spec.architecture)
    writer.add_type(spec.general_type)
    writer.add_string("adapter.type", spec.adapter_type)
    writer.add_float32("adapter.lora.alpha", spec.alpha)
    if spec.activated:
        writer.add_array("adapter.alora.invocation_tokens", [1, 2])
    if spec.tokenizer:
        add_tokenizer(writer, base, vocabulary(base))
    if spec.norms:
        writer.add_tensor("blk.0.attn_norm.weight", np.ones(base.embedding, dtype=np.float32))
    for name, (a, b) in lora_matrices(spec, base).items():
        writer.add_tensor(name + ".lora_a", a)
        if not spec.only_a:
            other = np.ascontiguousarray(b[:, 1:])
            writer.add_tensor(name + ".lora_b", other if spec.other_rank else b)
    finish(writer)
    return path


def write_merged(path: Path, spec: AdapterSpec, base: ModelSpec, scale: float = 1.0) -> Path:
    """Write the model of `base` with the adapter added to its weights, `scale` times."""
    changes = {}
    for name, (a, b) in lora_matrices(spec, base).items():
        # llama.cpp looks embeddings up in A, which has a row for each token.
        change = a @ b.T if name == "token_embd.weight" else b @ a
        changes[name] = change * np.float32(scale * spec.alpha / b.shape[1])
    return write_model(path, base, changes)
