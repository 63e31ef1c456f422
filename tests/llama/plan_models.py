"""Small random-weight models of many shapes, to compare the plan with what llama.cpp allocates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from tests.models import ModelSpec, vocabulary

_BLOCK = {
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_K": (256, 144),
    "Q6_K": (256, 210),
    "F16": (1, 2),
    "F32": (1, 4),
}


@dataclass(frozen=True)
class PlanSpec:
    """One model. Sizes must divide by 256 for the K-quants."""

    architecture: str = "qwen3"
    layers: int = 3
    embedding: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    feed_forward: int = 512
    experts: int = 0
    used: int = 2
    tied: bool = False
    kind: str = "Q8_0"
    """Type of the matrices."""
    fill: int = 0
    """Further tokens in the vocabulary."""
    window: int = 0
    kv_per_layer: tuple[int, ...] = ()
    context_length: int = 32768


def write_plan_model(path: Path, spec: PlanSpec, *, tensors_per_part: int = 0) -> Path:
    """Write the GGUF of `spec`, in parts if so wished; its weights are zeros and ones, since only sizes matter."""
    writer = gguf.GGUFWriter(path, spec.architecture, split_max_tensors=tensors_per_part)
    n_vocab = _add_tokenizer(writer, spec)
    _add_shape(writer, spec)
    for name, shape, kind in tensors(spec, n_vocab):
        _add(writer, name, shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def _add(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: str) -> None:
    if kind == "F32":
        writer.add_tensor(name, np.ones(shape, dtype=np.float32))
        return
    block, size = _BLOCK[kind]
    rows = np.zeros((*shape[:-1], shape[-1] // block * size), dtype=np.uint8)
    writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])


def _add_shape(writer: gguf.GGUFWriter, spec: PlanSpec) -> None:
    arch = spec.architecture
    writer.add_uint32(f"{arch}.context_length", spec.context_length)
    writer.add_uint32(f"{arch}.embedding_length", spec.embedding)
    writer.add_uint32(f"{arch}.block_count", spec.layers)
    writer.add_uint32(f"{arch}.feed_forward_length", spec.feed_forward)
    if arch == "openelm":
        writer.add_array(f"{arch}.attention.head_count", [spec.heads] * spec.layers)
    else:
        writer.add_uint32(f"{arch}.attention.head_count", spec.heads)
    if spec.kv_per_layer:
        writer.add_array(f"{arch}.attention.head_count_kv", list(spec.kv_per_layer))
    else:
        writer.add_uint32(f"{arch}.attention.head_count_kv", spec.kv_heads)
    writer.add_uint32(f"{arch}.attention.key_length", spec.head_size)
    writer.add_uint32(f"{arch}.attention.value_length", spec.head_size)
    writer.add_uint32(f"{arch}.rope.dimension_count", spec.head_size)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(f"{arch}.attention.layer_norm_epsilon", 1e-6)
    writer.add_float32(f"{arch}.rope.freq_base", 1e6)
    if arch in ("command-r", "granite"):
        writer.add_float32(f"{arch}.logit_scale", 0.1)
    if spec.window:
        writer.add_uint32(f"{arch}.attention.sliding_window", spec.window)
    if spec.experts:
        writer.add_uint32(f"{arch}.expert_count", spec.experts)
        writer.add_uint32(f"{arch}.expert_used_count", spec.used)
        writer.add_uint32(f"{arch}.expert_feed_forward_length", spec.feed_forward)
        writer.add_uint32(f"{arch}.expert_shared_feed_forward_length", spec.feed_forward)


def _add_tokenizer(writer: gguf.GGUFWriter, spec: PlanSpec) -> int:
    made = vocabulary(ModelSpec())
    texts = [*made.texts, *(f"filler{i}" for i in range(spec.fill))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types([*made.types, *(1 for _ in range(spec.fill))])
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(texts.index("<|im_end|>"))
    writer.add_bos_token_id(texts.index("<|endoftext|>"))
    return len(texts)


def tensors(spec: PlanSpec, n_vocab: int) -> list[tuple[str, tuple[int, ...], str]]:
    """List name, shape (rows first) and type of every tensor."""
    wide = spec.embedding
    made: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (n_vocab, wide), spec.kind),
        ("output_norm.weight", (wide,), "F32"),
    ]
    if spec.architecture == "starcoder2":
        made.append(("output_norm.bias", (wide,), "F32"))
    if not spec.tied:
        made.append(("output.weight", (n_vocab, wide), spec.kind))
    for layer in range(spec.layers):
        made += [
            (
                f"blk.{layer}.{name}",
                shape,
                "F32" if len(shape) == 1 or "gate_inp" in name else spec.kind,
            )
            for name, shape in _block(spec, layer).items()
        ]
    return made


def _block(spec: PlanSpec, layer: int) -> dict[str, tuple[int, ...]]:
    wide, arch = spec.embedding, spec.architecture
    kv_heads = spec.kv_per_layer[layer] if spec.kv_per_layer else spec.kv_heads
    queries, keys = spec.heads * spec.head_size, kv_heads * spec.head_size
    block: dict[str, tuple[int, ...]] = {"attn_norm.weight": (wide,), "ffn_norm.weight": (wide,)}
    if arch in ("phi3", "openelm"):
        block["attn_qkv.weight"] = (queries + 2 * keys, wide)
    else:
        block |= {
            "attn_q.weight": (queries, wide),
            "attn_k.weight": (keys, wide),
            "attn_v.weight": (keys, wide),
        }
    block["attn_output.weight"] = (wide, queries)
    if arch in ("qwen2", "qwen2moe"):
        block |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if arch in ("qwen3", "qwen3moe", "gemma3", "openelm"):
        block |= {"attn_q_norm.weight": (spec.head_size,), "attn_k_norm.weight": (spec.head_size,)}
    if arch in ("gemma2", "gemma3"):
        block |= {"post_attention_norm.weight": (wide,), "post_ffw_norm.weight": (wide,)}
    if arch == "starcoder2":
        biases = {"attn_norm": wide, "ffn_norm": wide, "attn_output": wide, "ffn_down": wide}
        biases["ffn_up"] = spec.feed_forward
        block |= {f"{name}.bias": (size,) for name, size in biases.items()}
    if arch == "command-r":
        del block["ffn_norm.weight"]
    return block | _feed_forward(spec)


def _feed_forward(spec: PlanSpec) -> dict[str, tuple[int, ...]]:
    wide, inner = spec.embedding, spec.feed_forward
    if spec.experts:
        block: dict[str, tuple[int, ...]] = {
            "ffn_gate_inp.weight": (spec.experts, wide),
            "ffn_gate_exps.weight": (spec.experts, inner, wide),
            "ffn_down_exps.weight": (spec.experts, wide, inner),
            "ffn_up_exps.weight": (spec.experts, inner, wide),
        }
        if spec.architecture == "qwen2moe":
            block |= {
                "ffn_gate_inp_shexp.weight": (wide,),
                "ffn_gate_shexp.weight": (inner, wide),
                "ffn_down_shexp.weight": (wide, inner),
                "ffn_up_shexp.weight": (inner, wide),
            }
        return block
    if spec.architecture == "starcoder2":
        return {"ffn_up.weight": (inner, wide), "ffn_down.weight": (wide, inner)}
    if spec.architecture == "phi3":
        return {"ffn_up.weight": (2 * inner, wide), "ffn_down.weight": (wide, inner)}
    return {
        "ffn_gate.weight": (inner, wide),
        "ffn_up.weight": (inner, wide),
        "ffn_down.weight": (wide, inner),
    }
