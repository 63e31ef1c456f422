"""`read_shape`: a model's shape from its GGUF headers, its numbers held against its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from server.catalog.gguf_header import GgufHeader, TensorInfo
from server.catalog.plan.shape import Layer, ModelShape, Rope, Weight
from server.core.errors import ModelFileError

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_EXPERTS = re.compile(r"ffn_(up|down|gate|gate_up)_(ch|)exps")
_MOST_LAYERS = 512
_STATEFUL = ("ssm_", "time_mix_", "shortconv.")
"""Tensors of layers that keep a state of fixed size for each slot."""
_INPUT = frozenset(
    {"token_embd", "token_embd_norm", "token_types", "position_embd", "per_layer_token_embd"}
)
"""Tensors of llama.cpp's input layer, which always stays on the CPU (llama-arch.cpp)."""
_REPEATED = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})
"""Stored once, used by every layer: each side that has layers gets a copy."""


def read_shape(headers: GgufHeader | Sequence[GgufHeader]) -> ModelShape:
    """Read the shape from the header, or from the headers of all parts in order.

    Raises `ModelFileError` when its numbers contradict its tensors.
    """
    parts = [headers] if isinstance(headers, GgufHeader) else list(headers)
    first = parts[0]
    reader = _Reader(first)
    n_layer = reader.require("block_count", 1, _MOST_LAYERS)
    weights = tuple(
        _weight(tensor, index, header.data_offset)
        for index, header in enumerate(parts)
        for tensor in header.tensors
    )
    _check_layers(first, n_layer, weights)
    n_embd = reader.require("embedding_length", 1, 1 << 20)
    layers = _layers(reader, n_layer, n_embd, weights)
    shape = ModelShape(
        path=str(first.path),
        name=str(first.metadata.get("general.name", "")),
        architecture=first.architecture,
        n_ctx_train=reader.require("context_length", 1, 1 << 30),
        n_embd=n_embd,
        n_vocab=first.array_length("tokenizer.ggml.tokens"),
        layers=layers,
        weights=weights,
        part_sizes=tuple(header.file_size for header in parts),
        rope=_rope(reader),
        mla=reader.number("attention.key_length_mla") > 0,
        windowed=_is_windowed(reader, layers),
        state_elements=_state_elements(reader),
    )
    _check_tensors(first, shape)
    return shape


class _Reader:
    """Reads the architecture's keys, scalar or one value per layer."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.prefix = header.architecture

    def number(self, key: str, default: int = 0) -> int:
        return self.header.integer(key, default)

    def require(self, key: str, least: int, most: int) -> int:
        value = self.header.integer(key, -1)
        if not least <= value <= most:
            said = "says nothing about" if value == -1 else f"says {value} for"
            raise _unsound(
                self.header,
                f"it {said} {self.prefix}.{key}, which must be {least} to {most}",
            )
        return value

    def per_layer(self, key: str, n_layer: int, default: Sequence[int]) -> list[int]:
        if self.header.array_length(f"{self.prefix}.{key}"):
            values = [int(value) for value in self.header.array(f"{self.prefix}.{key}")]
            if len(values) < n_layer or min(values) < 0:
                raise _unsound(
                    self.header,
                    f"{self.prefix}.{key} has {len(values)} values for {n_layer} layers",
                )
            return values[:n_layer]
        value = self.header.integer(key, -1)
        return list(default) if value < 0 else [value] * n_layer


def _unsound(header: GgufHeader, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{header.path} is not sound: {reason}. Download it again, or choose another conversion."
    )


def _weight(tensor: TensorInfo, part: int, data_offset: int) -> Weight:
    found = _BLOCK.fullmatch(tensor.name)
    stem = tensor.name.partition(".")[0]
    return Weight(
        tensor.name,
        tensor.dimensions,
        tensor.type_name,
        tensor.n_bytes,
        int(found[1]) if found else None,
        part,
        data_offset + tensor.offset,
        is_input=found is None and stem in _INPUT,
        is_shared_by_layers=found is None and stem in _REPEATED,
        is_experts=found is not None and _EXPERTS.match(found[2]) is not None,
    )


def _check_layers(header: GgufHeader, n_layer: int, weights: Sequence[Weight]) -> None:
    held = {weight.layer for weight in weights if weight.layer is not None}
    if held != set(range(n_layer)):
        raise _unsound(
            header,
            f"it claims {n_layer} layers (block_count) but holds tensors of {len(held)}"
            + (f", up to number {max(held)}" if held else ""),
        )


def _layers(
    reader: _Reader, n_layer: int, n_embd: int, weights: Sequence[Weight]
) -> tuple[Layer, ...]:
    heads = reader.per_layer("attention.head_count", n_layer, [0] * n_layer)
    heads_kv = reader.per_layer("attention.head_count_kv", n_layer, heads)
    most = max(heads)
    if most > 1 << 16 or max(heads_kv) > 1 << 16:
        raise _unsound(reader.header, f"it claims {max(most, *heads_kv)} attention heads")
    head = n_embd // heads[0] if heads[0] else 0
    sizes = [
        (
            reader.number("attention.key_length", head),
            reader.number("attention.value_length", head),
        ),
        (
            reader.number("attention.key_length_swa", reader.number("attention.key_length", head)),
            reader.number(
                "attention.value_length_swa", reader.number("attention.value_length", head)
            ),
        ),
    ]
    used = reader.per_layer("expert_used_count", n_layer, [0] * n_layer)
    swa = _swa_layers(reader, n_layer)
    shared = reader.number("attention.shared_kv_layers")
    named: list[dict[str, Weight]] = [{} for _ in range(n_layer)]
    for weight in weights:
        if weight.layer is not None:
            named[weight.layer][weight.name.split(".", 2)[2]] = weight
    recurrent = [any(name.startswith(_STATEFUL) for name in tensors) for tensors in named]
    return tuple(
        Layer(
            n_head=heads[index],
            n_head_kv=heads_kv[index],
            head_k=sizes[swa[index]][0],
            head_v=sizes[swa[index]][1],
            n_expert_used=used[index],
            has_kv=heads_kv[index] > 0
            and index < n_layer - shared
            and not _purely(recurrent, named, index),
            recurrent=recurrent[index],
            swa=swa[index],
            tensors=named[index],
        )
        for index in range(n_layer)
    )


def _purely(recurrent: Sequence[bool], named: Sequence[Mapping[str, Weight]], index: int) -> bool:
    """Whether a layer keeps a state only; some hybrids (Falcon-H1) attend in the same layer."""
    return recurrent[index] and "attn_k.weight" not in named[index]


_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "cohere2": 4,
    "llama4": 4,
    "exaone4": 4,
    "olmo2": 4,
}
"""Every so many layers one attends to everything; the others to a window."""


def _swa_layers(reader: _Reader, n_layer: int) -> list[bool]:
    """Say which layers attend to a window only (llama.cpp then keeps two caches and two masks)."""
    period = _PERIODS.get(reader.prefix, 0)
    window = reader.number("attention.sliding_window", 4096 if reader.prefix == "gemma2" else 0)
    key = "attention.sliding_window_pattern"
    if reader.header.array_length(f"{reader.prefix}.{key}"):
        return [bool(value) for value in reader.per_layer(key, n_layer, [])]
    period = reader.number(key, period)
    if not window or period < 2:
        return [False] * n_layer
    return [index % period < period - 1 for index in range(n_layer)]


_WINDOWED = frozenset({"exaone-moe", "exaone4", "gemma2", "llama4", "smallthinker"})
"""Architectures for which llama.cpp has a window of its own where the file names none."""


def _is_windowed(reader: _Reader, layers: Sequence[Layer]) -> bool:
    """Whether llama.cpp may use a window. Phi-3's it never does."""
    named = reader.prefix in _WINDOWED or reader.number("attention.sliding_window") > 0
    return any(layer.swa for layer in layers) or (named and reader.prefix != "phi3")


def _rope(reader: _Reader) -> Rope:
    metadata = reader.header.metadata
    factor = metadata.get(f"{reader.prefix}.rope.scaling.factor")
    if not isinstance(factor, int | float):
        factor = metadata.get(f"{reader.prefix}.rope.scale_linear")
    scaling = metadata.get(f"{reader.prefix}.rope.scaling.type", "linear")
    return Rope(
        str(scaling),
        float(factor) if isinstance(factor, int | float) and factor else 1.0,
        reader.number("rope.scaling.original_context_length"),
    )


def _state_elements(reader: _Reader) -> int:
    """`n_embd_r + n_embd_s` of llama-hparams.cpp for state-space layers."""
    inner, state = reader.number("ssm.inner_size"), reader.number("ssm.state_size")
    groups, width = reader.number("ssm.group_count"), reader.number("ssm.conv_kernel")
    return max(width - 1, 0) * (inner + 2 * groups * state) + state * inner


def _check_tensors(header: GgufHeader, shape: ModelShape) -> None:
    named = {weight.name: weight for weight in shape.weights}
    embedding = named.get("token_embd.weight")
    if embedding is None:
        raise _unsound(header, "it holds no token embedding (token_embd.weight)")
    expected = (shape.n_embd, shape.n_vocab)
    if embedding.dimensions[:2] != expected:
        raise _unsound(
            header,
            f"its token embedding has the shape {embedding.dimensions}, but embedding_length and the vocabulary "
            f"say {expected}",
        )
    for index, layer in enumerate(shape.layers):
        keys = layer.rows("attn_k")
        if keys and not shape.mla and not layer.recurrent and keys != layer.n_embd_k:
            raise _unsound(
                header,
                f"attn_k of layer {index} makes {keys} values, but the head counts say {layer.n_embd_k}",
            )
