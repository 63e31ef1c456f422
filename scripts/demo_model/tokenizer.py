"""Byte-level BPE in Qwen2's manner, trained on the demo corpus.

The runtime splits text with Qwen2's regular expression, but merges are learned on finer pieces:
letters apart from what stands before them, and each Han character alone. So a word has the same
tokens after a space, after a quote and in a snake_case name, which makes copying (and with it
tool calls with names never seen) much easier for a small model. Frequent words then get one
more merge with the space before them, to keep ordinary sentences short.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen3's control tokens: only these can end a turn or open one.
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen3's markers that are ordinary output: a server shows or parses them.
MARKER_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
SPACE = "Ġ"


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def _learn_merges(corpus: Sequence[str], size: int) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary (all 256 bytes first) and merges learned on the finer pieces."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [_split(QWEN2_SPLIT), _split(r"\p{Han}"), _split(r"\p{L}+"), _byte_level()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=3,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    learner.train_from_iterator(corpus, trainer)
    state = json.loads(learner.to_str())["model"]
    return state["vocab"], state["merges"]


def _add_space_merges(
    corpus: Iterable[str], vocab: dict[str, int], merges: list[list[str]], count: int
) -> None:
    """Let the ``count`` most frequent whole-token words take the space before them."""
    words = Counter(word for text in corpus for word in re.findall(r" ([A-Za-z]{2,})", text))
    words["a"] = words["I"] = 1 << 30
    wanted = [word for word, _ in words.most_common() if word in vocab][:count]
    for word in wanted:
        vocab[SPACE + word] = len(vocab)
        merges.append([SPACE, word])


def assemble(vocab: dict[str, int], merges: Sequence[Sequence[str]]) -> Tokenizer:
    """The runtime tokenizer; special tokens take the ids after the vocabulary."""
    pairs = [(left, right) for left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_split(QWEN2_SPLIT), _byte_level()])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in MARKER_TOKENS])
    return tokenizer


def train_tokenizer(corpus: Sequence[str], size: int, space_words: int) -> Tokenizer:
    """Learn a tokenizer of at most ``size`` tokens, ``space_words`` of them " word" tokens."""
    special = (*CONTROL_TOKENS, *MARKER_TOKENS)
    marks = re.compile("|".join(map(re.escape, special)))
    texts = [piece for text in corpus for piece in marks.split(text) if piece]
    vocab, merges = _learn_merges(texts, size - len(special) - space_words)
    _add_space_merges(texts, vocab, merges, space_words)
    return assemble(vocab, merges)


def merges_of(tokenizer: Tokenizer) -> list[str]:
    """Merges as the GGUF stores them: two pieces with a space between."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
