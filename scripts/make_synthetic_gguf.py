"""Write a GGUF with random weights in the exact shape of a named model, for measuring speed without a download.

    python scripts/make_synthetic_gguf.py qwen3-0.6b build/qwen3-0.6b-Q4_K_M.gguf

Tensor types are those that llama.cpp's quantizer chooses for Q4_K_M. The vocabulary has Qwen's size
and Qwen3's special tokens at their own ids, with made-up merges. Tensors are written one after the
other, so a 20 GB file needs little memory.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
N_VOCAB = 151_936
FIRST_SPECIAL = 151_643
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>"),
    *("</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>"),
    "</think>",
)
ENDOFTEXT, IM_END = FIRST_SPECIAL, FIRST_SPECIAL + 2

Q4_K, Q6_K = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K
F32 = gguf.GGMLQuantizationType.F32
BLOCK = 256
BYTES = {Q4_K: 144, Q6_K: 210}
ROWS_AT_ONCE = 1 << 26
"""Bytes of random weights made in one go."""


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model's dimensions."""

    layers: int
    embedding: int
    heads: int
    feed_forward: int
    tied: bool
    kv_heads: int = 8
    head_size: int = 128


SHAPES = {
    "qwen3-0.6b": Shape(layers=28, embedding=1024, heads=16, feed_forward=3072, tied=True),
    "qwen3-1.7b": Shape(layers=28, embedding=2048, heads=16, feed_forward=6144, tied=True),
    "qwen3-4b": Shape(layers=36, embedding=2560, heads=32, feed_forward=9728, tied=True),
    "qwen3-8b": Shape(layers=36, embedding=4096, heads=32, feed_forward=12288, tied=False),
    "qwen3-14b": Shape(layers=40, embedding=5120, heads=40, feed_forward=17408, tied=False),
    "qwen3-32b": Shape(layers=64, embedding=5120, heads=64, feed_forward=25600, tied=False),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write; `shape` as numpy has it (rows, columns), one-dimensional ones are float32 ones."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    gain: float = 1.0
    """Standard deviation of the weights times the square root of the columns."""


def more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M gives this layer's attn_v and ffn_down six bits (llama-quant.cpp, `use_more_bits`)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensors(shape: Shape) -> Iterator[Tensor]:
    """Yield every tensor in file order."""
    width, queries, keys = (
        shape.embedding,
        shape.heads * shape.head_size,
        shape.kv_heads * shape.head_size,
    )
    # Tied embeddings are also the output head. A gain of 3 spreads the logits like those of a
    # trained model.
    yield Tensor("token_embd.weight", (N_VOCAB, width), Q6_K if shape.tied else Q4_K, 3.0)
    yield Tensor("output_norm.weight", (width,), F32)
    if not shape.tied:
        yield Tensor("output.weight", (N_VOCAB, width), Q6_K, 3.0)
    for layer in range(shape.layers):
        wide = Q6_K if more_bits(layer, shape.layers) else Q4_K
        prefix = f"blk.{layer}."
        yield Tensor(prefix + "attn_norm.weight", (width,), F32)
        yield Tensor(prefix + "ffn_norm.weight", (width,), F32)
        yield Tensor(prefix + "attn_q_norm.weight", (shape.head_size,), F32)
        yield Tensor(prefix + "attn_k_norm.weight", (shape.head_size,), F32)
        yield Tensor(prefix + "attn_q.weight", (queries, width), Q4_K)
        yield Tensor(prefix + "attn_k.weight", (keys, width), Q4_K)
        yield Tensor(prefix + "attn_v.weight", (keys, width), wide)
        yield Tensor(prefix + "attn_output.weight", (width, queries), Q4_K)
        yield Tensor(prefix + "ffn_gate.weight", (shape.feed_forward, width), Q4_K)
        yield Tensor(prefix + "ffn_up.weight", (shape.feed_forward, width), Q4_K)
        yield Tensor(prefix + "ffn_down.weight", (width, shape.feed_forward), wide)


def random_q4_k(
    random: np.random.Generator, blocks: int, deviation: float
) -> npt.NDArray[np.uint8]:
    """Make Q4_K blocks whose weights have mean 0 and the given standard deviation.

    A weight is d·s·q - dmin·m with 6-bit s and m and 4-bit q (`block_q4_K`). With s = m = 15 and
    dmin = 7.5 d it is 15 d (q - 7.5), and uniform q deviate by 4.61.
    """
    raw = np.frombuffer(random.bytes(blocks * 144), dtype=np.uint8).reshape(blocks, 144).copy()
    scale = deviation / (15 * 4.61)
    raw[:, 0:4] = np.array([scale, 7.5 * scale], dtype="<f2").view(np.uint8)
    raw[:, 4:12] = 15
    raw[:, 12:16] = 0xFF
    return raw


def random_q6_k(
    random: np.random.Generator, blocks: int, deviation: float
) -> npt.NDArray[np.uint8]:
    """Make Q6_K blocks: weights are d·s·(q - 32), 8-bit s, 6-bit q (`block_q6_K`); here s = 16, q deviate by 18.47."""
    raw = np.frombuffer(random.bytes(blocks * 210), dtype=np.uint8).reshape(blocks, 210).copy()
    raw[:, 192:208] = 16
    raw[:, 208:210] = np.array([deviation / (16 * 18.47)], dtype="<f2").view(np.uint8)
    return raw


def chunks(tensor: Tensor, random: np.random.Generator) -> Iterator[npt.NDArray[np.generic]]:
    """Yield a tensor's data in pieces of at most `ROWS_AT_ONCE` bytes."""
    if tensor.kind == F32:
        yield np.ones(tensor.shape, dtype=np.float32)
        return
    make = random_q4_k if tensor.kind == Q4_K else random_q6_k
    left = math.prod(tensor.shape) // BLOCK
    while left:
        blocks = min(left, ROWS_AT_ONCE // BYTES[tensor.kind])
        yield make(random, blocks, tensor.gain / math.sqrt(tensor.shape[-1]))
        left -= blocks


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Make token texts, types and merges.

    After the 256 bytes come all strings of 2, then 3, then 4 letters (the first may be the space,
    `Ġ`), in order, each merged from its own beginning and one letter; then Qwen3's special tokens
    and padding.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    texts = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges: list[str] = []
    level = ["\u0120", *letters]
    while len(texts) < FIRST_SPECIAL:
        pairs = [(start, letter) for start in level for letter in letters][
            : FIRST_SPECIAL - len(texts)
        ]
        merges += [f"{start} {letter}" for start, letter in pairs]
        level = [start + letter for start, letter in pairs]
        texts += level
    types = [int(gguf.TokenType.NORMAL)] * len(texts)
    for text in SPECIAL:
        is_marker = (
            not text.startswith("<|") or "fim" in text or text in ("<|repo_name|>", "<|file_sep|>")
        )
        types.append(int(gguf.TokenType.USER_DEFINED if is_marker else gguf.TokenType.CONTROL))
        texts.append(text)
    types += [int(gguf.TokenType.UNUSED)] * (N_VOCAB - len(texts))
    texts += [f"[PAD{token}]" for token in range(len(texts), N_VOCAB)]
    return texts, types, merges


def write(name: str, out: Path, *, seed: int = 0, header_only: bool = False) -> None:
    """Write the file under a temporary name, then move it: an interrupted run leaves no half of one."""
    shape = SHAPES[name]
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(partial, "qwen3")
    writer.add_name(f"{name} shape, random weights")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q4_K_M))
    writer.add_quantization_version(2)
    writer.add_context_length(40_960)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    add_tokenizer(writer)
    todo = list(tensors(shape))
    for tensor in todo:
        add_info(writer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with partial.open("r+b") as file:
        file.seek(0, 2)
        random = np.random.default_rng(seed)
        for tensor in todo:
            file.seek(-(-file.tell() // 32) * 32)
            if header_only:
                file.seek(n_bytes(tensor), 1)
                continue
            for chunk in chunks(tensor, random):
                file.write(chunk.tobytes())
        file.truncate(-(-file.tell() // 32) * 32)
    partial.replace(out)


def n_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's data."""
    elements = math.prod(tensor.shape)
    return elements * 4 if tensor.kind == F32 else elements // BLOCK * BYTES[tensor.kind]


def add_info(writer: gguf.GGUFWriter, tensor: Tensor) -> None:
    """Announce a tensor; quantized shapes are given in bytes per row, as the writer wants them."""
    if tensor.kind == F32:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), n_bytes(tensor))
        return
    rows, columns = tensor.shape
    byte_shape = (rows, columns // BLOCK * BYTES[tensor.kind])
    writer.add_tensor_info(
        tensor.name, byte_shape, np.dtype(np.uint8), n_bytes(tensor), raw_dtype=tensor.kind
    )


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Write vocabulary, special ids and chat template."""
    texts, types, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(IM_END)
    writer.add_bos_token_id(ENDOFTEXT)
    writer.add_pad_token_id(ENDOFTEXT)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def main() -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES, help="whose dimensions to take")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")
    parser.add_argument(
        "--header-only", action="store_true", help="leave the weights as a hole of the right size"
    )
    arguments = parser.parse_args()
    write(arguments.shape, arguments.out, seed=arguments.seed, header_only=arguments.header_only)
    sys.stdout.write(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
