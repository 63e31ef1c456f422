"""Where llama.cpp puts the weights, and what they take there (llama-model-loader.cpp)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from server.catalog.gguf_types import BLOCKS
from server.catalog.plan.allocator import padded
from server.catalog.plan.shape import ModelShape, Weight

_GPU_ALIGNMENT, _CPU_ALIGNMENT = 128, 32
_ROW_PADDING = 512
"""`MATRIX_ROW_PADDING` of ggml-cuda: elements to which the last row of a quantized matrix is padded."""
_BLOCK_SIZES = {name: (block, size) for name, block, size in BLOCKS.values()}
_NOT_QUANTIZED = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})
_REPACKED_ROWS = 8

ALL_REPACKED = frozenset(
    {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0"}
)
"""Types that some CPU repacks: what is assumed of a CPU that is not known."""


def repacked_types(flags: frozenset[str]) -> frozenset[str]:
    """Types that ggml repacks on a CPU with these flags of /proc/cpuinfo (ggml-cpu/repack.cpp)."""
    if {"asimd", "asimddp"} & flags:
        kinds = set(ALL_REPACKED) - {"Q2_K"}
        return frozenset(kinds)
    kinds = set()
    if "avx2" in flags:
        kinds |= {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    if "avx512f" in flags:
        kinds |= {"Q2_K"}
    if "amx_int8" in flags:
        kinds |= {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
    return frozenset(kinds)


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of weights. `cpu` = `mapped` + `repacked`."""

    gpu: int
    mapped: int
    """What the file's mapped range (or the buffer, without mmap) comes to."""
    repacked: int
    """Anonymous memory beside it: matrices in another order, for the CPU's vector units."""
    evictable: int
    """Of `mapped`, pages of the file that hold what lies elsewhere: read once while loading."""

    @property
    def cpu(self) -> int:
        """Bytes in system memory."""
        return self.mapped + self.repacked


@dataclass(frozen=True, slots=True)
class Placement:
    """What decides where weights go."""

    n_gpu_layers: int
    n_cpu_moe: int = 0
    repacked: frozenset[str] = ALL_REPACKED
    has_gpu: bool = True
    """Whether llama.cpp sees a GPU at all: beside one it repacks nothing."""
    mmap: bool = True


def first_gpu_layer(shape: ModelShape, n_gpu_layers: int) -> int:
    """Index from which on layers go to the GPU; the output head is number `n_layer`."""
    return max(shape.n_layer + 1 - n_gpu_layers, 0)


def on_gpu(shape: ModelShape, weight: Weight, where: Placement) -> bool:
    """Apply llama.cpp's layer rule to one tensor."""
    if weight.is_input or not where.has_gpu:
        return False
    if weight.is_experts and weight.layer is not None and weight.layer < where.n_cpu_moe:
        return False
    layer = shape.n_layer if weight.layer is None else weight.layer
    return layer >= first_gpu_layer(shape, where.n_gpu_layers)


def weight_bytes(shape: ModelShape, where: Placement) -> WeightBytes:
    """Add up the buffers."""
    gpu: list[Weight] = []
    cpu: list[Weight] = []
    repacked: list[Weight] = []
    split = first_gpu_layer(shape, where.n_gpu_layers) if where.has_gpu else shape.n_layer + 1
    for weight in shape.weights:
        if weight.is_shared_by_layers:
            if split > 0:
                cpu.append(weight)
            if split < shape.n_layer:
                gpu.append(weight)
        elif on_gpu(shape, weight, where):
            gpu.append(weight)
        elif _is_repacked(weight, where):
            repacked.append(weight)
        else:
            cpu.append(weight)
    if shape.tied:
        _add_tied_head(shape, where, split, gpu, repacked)
    mapped = _mapped(cpu) if where.mmap else _summed(cpu)
    return WeightBytes(
        gpu=sum(padded(_gpu_bytes(weight), _GPU_ALIGNMENT) for weight in gpu),
        mapped=mapped,
        repacked=_summed(repacked),
        evictable=max(mapped - _summed(cpu), 0) if where.mmap else 0,
    )


def _add_tied_head(
    shape: ModelShape, where: Placement, split: int, gpu: list[Weight], repacked: list[Weight]
) -> None:
    """Copy the embedding for the output head, unless both would lie in one buffer."""
    for weight in shape.weights:
        if weight.name != "token_embd.weight":
            continue
        if split <= shape.n_layer:
            gpu.append(weight)
        elif _repackable(weight, where):
            repacked.append(weight)


def _is_repacked(weight: Weight, where: Placement) -> bool:
    return not weight.is_input and _repackable(weight, where)


def _repackable(weight: Weight, where: Placement) -> bool:
    if (
        where.has_gpu
        or weight.type_name not in where.repacked
        or not weight.name.endswith(".weight")
    ):
        return False
    matrix = 3 if weight.is_experts else 2
    return len(weight.dimensions) == matrix and weight.dimensions[1] % _REPACKED_ROWS == 0


def _gpu_bytes(weight: Weight) -> int:
    rest = weight.dimensions[0] % _ROW_PADDING if weight.dimensions else 0
    if weight.type_name in _NOT_QUANTIZED or not rest:
        return weight.n_bytes
    block, size = _BLOCK_SIZES[weight.type_name]
    return weight.n_bytes + (_ROW_PADDING - rest) // block * size


def _mapped(weights: Iterable[Weight]) -> int:
    """Count from the first to the last of these tensors in each file, whatever lies between them."""
    ranges: dict[int, tuple[int, int]] = {}
    for weight in weights:
        first, last = ranges.get(weight.part, (weight.offset, weight.offset))
        ranges[weight.part] = (
            min(first, weight.offset),
            max(last, weight.offset + weight.n_bytes),
        )
    return sum(last - first for first, last in ranges.values())


def _summed(weights: Iterable[Weight]) -> int:
    return sum(padded(weight.n_bytes, _CPU_ALIGNMENT) for weight in weights)
