"""Small GGUF files for tests: a scripted model, a random one, and broken ones.

Both are of the Qwen3 architecture with a byte-level BPE vocabulary of their own, so nothing is
downloaded.

The scripted model's greedy next token depends on the last token only: attention and feed-forward
add nothing and `output.weight` holds the embeddings in permuted order. A script is therefore a
chain of distinct tokens, started by `start` (a ChatML prompt ends in a newline) and ended by
`<|im_end|>`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
_MERGES = (
    "h e",
    "t he",
    "Ġ the",
    "i n",
    "e r",
    "o n",
    "a n",
    "Ġ w",
    "o r",
    "l d",
    "or ld",
    "Ġw orld",
    "he l",
    "l o",
)
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelSpec:
    """What to write. The defaults make a sound random model."""

    script: tuple[bytes, ...] | None = None
    """Pieces of the answer, each its own token, no two alike; None makes random weights."""
    start: bytes = b"\n"
    """The piece after which the script starts: the end of every prompt."""
    extra_pieces: tuple[bytes, ...] = ()
    """Further vocabulary, for prompts."""
    padding: int = 0
    """Tokens behind all others that no text has."""
    seed: int = 0
    layers: int = 2
    embedding: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 32
    feed_forward: int = 256
    context_length: int = 32768
    template: str | None = CHATML
    # What can be wrong with a file:
    architecture: str = "qwen3"
    declared_layers: int | None = None
    eos: int | None = None
    duplicate_token: bool = False
    tokenizer: bool = True
    nan_logits: bool = False


@dataclass
class Vocabulary:
    """Token texts in GGUF form (bytes as GPT-2's printable characters), their types, and a way back."""

    texts: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)

    def add(self, text: str, kind: int) -> None:
        """Append a token unless it is there."""
        if text not in self.texts:
            self.texts.append(text)
            self.types.append(kind)

    def id_of(self, piece: bytes) -> int:
        """Token id of a whole piece: an ordinary token's bytes, or a special token's name."""
        text = printable(piece)
        return self.texts.index(text) if text in self.texts else self.texts.index(piece.decode())


def printable(piece: bytes) -> str:
    """Write bytes as GPT-2's byte-level BPE does: every byte is one printable character."""
    return "".join(_BYTE_TO_CHARACTER[byte] for byte in piece)


def _byte_to_character() -> dict[int, str]:
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(moved)}


_BYTE_TO_CHARACTER = _byte_to_character()


def vocabulary(spec: ModelSpec) -> Vocabulary:
    """Byte tokens 0 to 255, merges, the script's pieces, then control tokens and markers."""
    made = Vocabulary()
    for byte in range(256):
        made.add(_BYTE_TO_CHARACTER[byte], _NORMAL)
    for merge in _MERGES:
        made.add(merge.replace(" ", ""), _NORMAL)
    for piece in (*spec.extra_pieces, *(spec.script or ())):
        if piece.decode("utf-8", "replace") not in CONTROL + MARKERS:
            made.add(printable(piece), _NORMAL)
    for text in CONTROL:
        made.add(text, _CONTROL)
    for text in MARKERS:
        made.add(text, _USER_DEFINED)
    for number in range(spec.padding):
        made.add(f"[PAD{number}]", _NORMAL)
    return made


def successors(spec: ModelSpec) -> list[int]:
    """Return the greedy next token of every token of a scripted model."""
    vocab = vocabulary(spec)
    chain = [vocab.id_of(piece) for piece in (spec.start, *(spec.script or ()), b"<|im_end|>")]
    if len(set(chain)) != len(chain):
        raise ValueError("a script needs distinct pieces, other than its start and <|im_end|>")
    mapping = dict(itertools.pairwise(chain))
    sources = [token for token in range(len(vocab.texts)) if token not in mapping]
    taken = set(mapping.values())
    targets = [token for token in range(len(vocab.texts)) if token not in taken]
    np.random.default_rng(spec.seed).shuffle(targets)
    mapping |= dict(zip(sources, targets, strict=True))
    return [mapping[token] for token in range(len(vocab.texts))]


def follow(spec: ModelSpec, last: int, count: int) -> list[int]:
    """Return the `count` tokens that a scripted model says after `last`."""
    following = successors(spec)
    said: list[int] = []
    for _ in range(count):
        last = following[last]
        said.append(last)
    return said


def write_model(path: Path, spec: ModelSpec, changes: Mapping[str, Floats] | None = None) -> Path:
    """Write the GGUF of `spec` to `path` and return it; `changes` are added to the weights they name."""
    vocab = vocabulary(spec)
    writer = gguf.GGUFWriter(path, spec.architecture)
    writer.add_name("onegpu test model")
    _add_shape(writer, spec)
    if spec.tokenizer:
        add_tokenizer(writer, spec, vocab)
    for name, tensor in tensors_of(spec):
        writer.add_tensor(name, tensor if changes is None else tensor + changes.get(name, 0))
    finish(writer)
    return path


def tensors_of(spec: ModelSpec) -> Sequence[tuple[str, Floats]]:
    """Return the names and weights of `spec`, in file order."""
    return _tensors(spec, len(vocabulary(spec).texts))


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added, and close."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    prefix = spec.architecture
    writer.add_uint32(f"{prefix}.context_length", spec.context_length)
    writer.add_uint32(f"{prefix}.embedding_length", spec.embedding)
    writer.add_uint32(
        f"{prefix}.block_count",
        spec.layers if spec.declared_layers is None else spec.declared_layers,
    )
    writer.add_uint32(f"{prefix}.feed_forward_length", spec.feed_forward)
    writer.add_uint32(f"{prefix}.attention.head_count", spec.heads)
    writer.add_uint32(f"{prefix}.attention.head_count_kv", spec.kv_heads)
    writer.add_uint32(f"{prefix}.attention.key_length", spec.head_size)
    writer.add_uint32(f"{prefix}.attention.value_length", spec.head_size)
    writer.add_float32(f"{prefix}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(f"{prefix}.rope.freq_base", 1e6)


def add_tokenizer(writer: gguf.GGUFWriter, spec: ModelSpec, vocab: Vocabulary) -> None:
    """Add the vocabulary of `spec`, sound or not as it says."""
    texts = list(vocab.texts)
    if spec.duplicate_token:
        texts[1] = texts[0]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(vocab.types)
    writer.add_token_merges(list(_MERGES))
    writer.add_eos_token_id(vocab.texts.index("<|im_end|>") if spec.eos is None else spec.eos)
    writer.add_bos_token_id(vocab.texts.index("<|endoftext|>"))
    writer.add_pad_token_id(vocab.texts.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    if spec.template is not None:
        writer.add_chat_template(spec.template)


def _tensors(spec: ModelSpec, n_vocab: int) -> Sequence[tuple[str, Floats]]:
    random = np.random.default_rng(spec.seed)
    scripted = spec.script is not None

    def weight(rows: int, columns: int, *, silent: bool = False) -> Floats:
        if silent:
            return np.zeros((rows, columns), dtype=np.float32)
        made = random.standard_normal((rows, columns), dtype=np.float32)
        return made / np.float32(np.sqrt(columns))

    def ones(size: int) -> Floats:
        return np.ones(size, dtype=np.float32)

    embedding = random.standard_normal((n_vocab, spec.embedding)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    output = 3 * weight(n_vocab, spec.embedding)
    if scripted:
        output[successors(spec)] = 2 * embedding
    if spec.nan_logits:
        output[:] = np.nan
    tensors = [
        ("token_embd.weight", embedding),
        ("output_norm.weight", ones(spec.embedding)),
        ("output.weight", output),
    ]
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    for layer in range(spec.layers):
        block = {
            "attn_norm": ones(spec.embedding),
            "ffn_norm": ones(spec.embedding),
            "attn_q": weight(queries, spec.embedding),
            "attn_k": weight(keys, spec.embedding),
            "attn_v": weight(keys, spec.embedding),
            "attn_output": weight(spec.embedding, queries, silent=scripted),
            "attn_q_norm": ones(spec.head_size),
            "attn_k_norm": ones(spec.head_size),
            "ffn_gate": weight(spec.feed_forward, spec.embedding),
            "ffn_up": weight(spec.feed_forward, spec.embedding),
            "ffn_down": weight(spec.embedding, spec.feed_forward, silent=scripted),
        }
        tensors += [(f"blk.{layer}.{name}.weight", tensor) for name, tensor in block.items()]
    return tensors


def truncate_file(source: Path, target: Path, *, missing: int) -> Path:
    """Copy `source` without its last `missing` bytes."""
    target.write_bytes(source.read_bytes()[:-missing])
    return target


class ModelFiles:
    """Files made on demand in one folder, each spec once."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`."""
        self._folder = folder
        self._made: dict[ModelSpec, Path] = {}

    def path(self, spec: ModelSpec | None = None, **changes: object) -> Path:
        """Return the file of `spec` (default: a random model) with `changes` to its fields."""
        wanted = replace(spec or ModelSpec(), **changes)  # type: ignore[arg-type]
        if wanted not in self._made:
            self._made[wanted] = write_model(self._folder / f"model-{len(self._made)}.gguf", wanted)
        return self._made[wanted]
