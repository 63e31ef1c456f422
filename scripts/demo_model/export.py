"""Write the trained network as a GGUF file that llama.cpp loads as a Qwen3 model."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer

from demo_model.model import DemoModel
from demo_model.template import template_source
from demo_model.tokenizer import CONTROL_TOKENS, MARKER_TOKENS, merges_of

ARCHITECTURE = "qwen3"
BLOCK = 32


def _write_shape(writer: gguf.GGUFWriter, model: DemoModel) -> None:
    shape = model.shape
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_base)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(index) or "" for index in range(size)]
    if "" in tokens or len(set(tokens)) != size:
        raise ValueError("the vocabulary has a gap or a duplicate; llama.cpp would refuse it")
    kinds = [gguf.TokenType.NORMAL] * size
    for token in CONTROL_TOKENS:
        kinds[tokens.index(token)] = gguf.TokenType.CONTROL
    for token in MARKER_TOKENS:
        kinds[tokens.index(token)] = gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges_of(tokenizer))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(template_source())


def _write_tensors(writer: gguf.GGUFWriter, model: DemoModel) -> None:
    for name, weight in model.state_dict().items():
        values = weight.detach().float().numpy().astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        if values.shape[-1] % BLOCK:
            raise ValueError(f"{name}: rows of {values.shape[-1]} do not divide by {BLOCK}")
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)


def export(model: DemoModel, tokenizer: Tokenizer, path: Path) -> None:
    """Write ``path``: Q8_0 matrices, float32 norms, tied embeddings, tokenizer and template."""
    if tokenizer.get_vocab_size() != model.shape.vocab:
        raise ValueError("model and tokenizer differ in vocabulary size")
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_name("onegpu demo")
    writer.add_description("A toy that shows that the serving stack works.")
    writer.add_license("same as the onegpu project")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_shape(writer, model)
    _write_tokenizer(writer, tokenizer)
    _write_tensors(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
