"""The shape of a model, as far as memory depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the file."""

    name: str
    dimensions: tuple[int, ...]
    type_name: str
    n_bytes: int
    layer: int | None
    """None: of the input or output layer."""
    part: int
    """Index of the file that holds it."""
    offset: int
    """Byte at which it starts in that file."""
    is_input: bool
    """Whether it is of the input layer."""
    is_shared_by_layers: bool
    """Whether every layer uses it."""
    is_experts: bool
    """Whether `n_cpu_moe` can keep it on the CPU."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. `tensors` by their names without `blk.N.`."""

    n_head: int
    n_head_kv: int
    head_k: int
    head_v: int
    n_expert_used: int
    has_kv: bool
    recurrent: bool
    swa: bool
    tensors: Mapping[str, Weight]

    @property
    def n_embd_k(self) -> int:
        """Elements of one token's K."""
        return self.n_head_kv * self.head_k

    @property
    def n_embd_v(self) -> int:
        """Elements of one token's V."""
        return self.n_head_kv * self.head_v

    def rows(self, name: str) -> int:
        """Outputs of the weight `name`, 0 when there is none."""
        weight = self.tensors.get(f"{name}.weight")
        return weight.dimensions[1] if weight and len(weight.dimensions) > 1 else 0


@dataclass(frozen=True, slots=True)
class Rope:
    """What the file itself says about stretching positions."""

    scaling: str
    """`none`, `linear`, `yarn`, `longrope`; `linear` with factor 1 is no scaling."""
    factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """All that the plan needs to know about a model."""

    path: str
    name: str
    architecture: str
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    layers: tuple[Layer, ...]
    weights: tuple[Weight, ...]
    part_sizes: tuple[int, ...]
    rope: Rope
    mla: bool
    """K holds the compressed state that V is read from, so there is no V cache."""
    windowed: bool
    """Whether llama.cpp hides what lies behind a sliding window in some layer: a saved state then lacks cells."""
    state_elements: int
    """float32 values that a recurrent layer keeps for each slot."""

    @property
    def n_layer(self) -> int:
        """Blocks; the output head counts as one layer more."""
        return len(self.layers)

    @property
    def tied(self) -> bool:
        """Whether the token embedding is the output head too."""
        return all(weight.name != "output.weight" for weight in self.weights)

    @property
    def n_expert_layers(self) -> int:
        """Layers that have experts."""
        return len({weight.layer for weight in self.weights if weight.is_experts})

    @property
    def file_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.part_sizes)
