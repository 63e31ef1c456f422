"""GGUF headers of named shapes, without the weights: a sparse file has the full size all the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from tests.catalog.conftest import ARRAY, INT32, STRING, UINT32, entry, strings, text

FLOAT32 = 6
_TYPES = {"F32": (0, 1, 4), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210), "Q8_0": (8, 32, 34)}


@dataclass(frozen=True)
class HeaderSpec:
    """The defaults are Qwen3-32B in Q4_K_M."""

    architecture: str = "qwen3"
    layers: int = 64
    embedding: int = 5120
    heads: int = 64
    kv_heads: int = 8
    head_size: int = 128
    feed_forward: int = 25600
    vocabulary: int = 151936
    context: int = 40960
    experts: int = 0
    used: int = 8
    tied: bool = False
    extra: tuple[bytes, ...] = ()


QWEN3_32B = HeaderSpec()
QWEN3_30B_A3B = HeaderSpec("qwen3moe", 48, 2048, 32, 4, 128, feed_forward=768, experts=128)
SMALL = HeaderSpec(
    layers=2, embedding=256, heads=4, kv_heads=2, head_size=64, feed_forward=512, vocabulary=300
)


def number(key: str, value: int) -> bytes:
    return entry(key, UINT32, struct.pack("<I", value))


def tensors(spec: HeaderSpec) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, dimensions (contiguous first) and type of every tensor, types as in Q4_K_M."""
    wide, inner = spec.embedding, spec.feed_forward
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    yield "token_embd.weight", (wide, spec.vocabulary), "Q4_K"
    yield "output_norm.weight", (wide,), "F32"
    if not spec.tied:
        yield "output.weight", (wide, spec.vocabulary), "Q6_K"
    for layer in range(spec.layers):
        eighth = spec.layers // 8
        finer = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
        mixed = "Q6_K" if finer else "Q4_K"
        block: list[tuple[str, tuple[int, ...], str]] = [
            ("attn_norm", (wide,), "F32"),
            ("ffn_norm", (wide,), "F32"),
            ("attn_q", (wide, queries), "Q4_K"),
            ("attn_k", (wide, keys), "Q4_K"),
            ("attn_v", (wide, keys), mixed),
            ("attn_output", (queries, wide), "Q4_K"),
            ("attn_q_norm", (spec.head_size,), "F32"),
            ("attn_k_norm", (spec.head_size,), "F32"),
        ]
        if spec.experts:
            many = spec.experts
            block += [
                ("ffn_gate_inp", (wide, many), "F32"),
                ("ffn_gate_exps", (wide, inner, many), "Q4_K"),
                ("ffn_up_exps", (wide, inner, many), "Q4_K"),
                ("ffn_down_exps", (inner, wide, many), mixed),
            ]
        else:
            block += [
                ("ffn_gate", (wide, inner), "Q4_K"),
                ("ffn_up", (wide, inner), "Q4_K"),
                ("ffn_down", (inner, wide), mixed),
            ]
        for name, dimensions, kind in block:
            yield f"blk.{layer}.{name}.weight", dimensions, kind


def metadata(spec: HeaderSpec) -> list[bytes]:
    arch = spec.architecture
    values = {
        "block_count": spec.layers,
        "context_length": spec.context,
        "embedding_length": spec.embedding,
        "feed_forward_length": spec.feed_forward,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_size,
        "attention.value_length": spec.head_size,
    }
    if spec.experts:
        values |= {"expert_count": spec.experts, "expert_used_count": spec.used}
        values["expert_feed_forward_length"] = spec.feed_forward
    count = spec.vocabulary
    kinds = struct.pack("<IQ", INT32, count) + struct.pack("<i", 1) * count
    return [
        entry("general.architecture", STRING, text(arch)),
        entry("general.name", STRING, text("a test's model")),
        *(number(f"{arch}.{key}", value) for key, value in values.items()),
        entry(f"{arch}.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-6)),
        entry("tokenizer.ggml.model", STRING, text("gpt2")),
        entry("tokenizer.ggml.pre", STRING, text("qwen2")),
        entry("tokenizer.ggml.tokens", ARRAY, strings([f"t{i:06}" for i in range(count)])),
        entry("tokenizer.ggml.token_type", ARRAY, kinds),
        entry("tokenizer.ggml.merges", ARRAY, strings([f"to {i:06}" for i in range(count)])),
        number("tokenizer.ggml.eos_token_id", count - 1),
        *spec.extra,
    ]


def encode(
    entries: list[bytes], listed: list[tuple[str, tuple[int, ...], str]]
) -> tuple[bytes, int]:
    """Return the header and the size of the whole file."""
    offset, table = 0, []
    for name, dimensions, kind in listed:
        code, block, size = _TYPES[kind]
        table.append(
            text(name)
            + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
            + struct.pack("<IQ", code, offset)
        )
        offset += -(-(prod(dimensions) // block * size) // 32) * 32
    counts = struct.pack("<IQQ", 3, len(table), len(entries))
    made = b"GGUF" + counts + b"".join(entries) + b"".join(table)
    made += bytes(-len(made) % 32)
    return made, len(made) + offset


def write_header(path: Path, spec: HeaderSpec) -> Path:
    """Write the header and make the file as long as the whole model's, without its bytes."""
    made, size = encode(metadata(spec), list(tensors(spec)))
    with path.open("wb") as file:
        file.write(made)
        file.truncate(size)
    return path


def write_split(folder: Path, spec: HeaderSpec, count: int) -> list[Path]:
    """Write the model in `count` parts: the vocabulary in the first, tensors over all."""
    listed = list(tensors(spec))
    share = -(-len(listed) // count)
    paths = []
    for index in range(count):
        own = [number("split.no", index), number("split.count", count)]
        own.append(entry("split.tensors.count", INT32, struct.pack("<i", len(listed))))
        entries = metadata(spec) + own if index == 0 else own
        made, size = encode(entries, listed[index * share : (index + 1) * share])
        path = folder / f"model-{index + 1:05}-of-{count:05}.gguf"
        path.write_bytes(made + bytes(size - len(made)))
        paths.append(path)
    return paths
