"""A vocabulary of Qwen's size with Qwen3's special tokens, and made-up merges between the bytes and them."""

from __future__ import annotations

import gguf

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
PADDING = 267
"""Unused ids behind the special tokens of the 151,936 that Qwen3 has."""
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>"),
    *("</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>"),
    "</think>",
)


def first_special(n_vocab: int) -> int:
    """Id of `<|endoftext|>`: 151643 of 151936, as in Qwen3."""
    return min(151_643, n_vocab - PADDING - len(SPECIAL))


def vocabulary(n_vocab: int = 151_936) -> tuple[list[str], list[int], list[str]]:
    """Make token texts, types and merges.

    After the 256 bytes come all strings of 2, then 3, then 4 letters (the first may be the space,
    `Ġ`), in order, each merged from its own beginning and one letter; then Qwen3's special tokens
    and padding.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    special = first_special(n_vocab)
    texts = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges: list[str] = []
    level = ["\u0120", *letters]
    while len(texts) < special:
        pairs = [(start, letter) for start in level for letter in letters][: special - len(texts)]
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
    types += [int(gguf.TokenType.UNUSED)] * (n_vocab - len(texts))
    texts += [f"[PAD{token}]" for token in range(len(texts), n_vocab)]
    return texts, types, merges


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Write vocabulary, special ids and chat template."""
    texts, types, merges = vocabulary(n_vocab)
    end_of_text = first_special(n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(end_of_text + 2)
    writer.add_bos_token_id(end_of_text)
    writer.add_pad_token_id(end_of_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
