"""LoRA adapters: checked against the model by their headers, loaded, and set on one context.

An adapter belongs to the context it was set on, so cells of one context are all computed with the
same weights: prefixes cannot cross adapters, because no context ever changes its adapter.
"""

from __future__ import annotations

import ctypes
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from server.catalog.gguf import GgufHeader, TensorInfo, read_header
from server.core.errors import ModelFileError

if TYPE_CHECKING:
    from server.llama.model import LoadedModel
    from server.llama.native import Address, Library
    from server.llama.params import LlamaParams

_A, _B = ".lora_a", ".lora_b"
_ALORA = "adapter.alora.invocation_tokens"
_MATRIX_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""What every back end of llama.cpp multiplies; its converter writes the first four."""
_LOG = logging.getLogger("onegpu.llama")


def attach_adapter(library: Library, loaded: LoadedModel, params: LlamaParams) -> Address | None:
    """Load `params.adapter` and set it on `loaded.context`; None when there is no adapter.

    llama.cpp frees the adapter with the model; `detach_adapter` does it earlier, for a context that
    ends before its model. Raises `ModelFileError`, and then leaves the context as it was.
    """
    if params.adapter is None:
        return None
    check_adapter(params.adapter, params.path)
    library.log.clear()
    adapter = library.adapter_lora_init(loaded.model, str(params.adapter).encode())
    if not adapter:
        message = f"llama.cpp cannot use the adapter {params.adapter}: {library.log.reason()}."
        raise ModelFileError(message)
    set_adapter(library, loaded.context, adapter, params.adapter_scale)
    return adapter


def set_adapter(library: Library, context: Address, adapter: Address, scale: float) -> None:
    """Make `adapter`, times `scale`, the only one of `context`; the next decode plans its graphs anew.

    Cells that the context holds already stay as they were computed: call it on an empty one.
    """
    handles, scales = (ctypes.c_void_p * 1)(adapter), (ctypes.c_float * 1)(scale)
    code = library.set_adapters_lora(context, handles, 1, scales)
    if code:
        raise ModelFileError(f"llama.cpp refused the adapter (code {code}).")


def detach_adapter(library: Library, context: Address, adapter: Address | None) -> None:
    """Take the adapter off `context` and free it, while context and model live; harmless for None."""
    if adapter is None:
        return
    library.set_adapters_lora(context, None, 0, None)
    library.adapter_lora_free(adapter)


def adapter_bytes(path: Path) -> int:
    """Bytes that the adapter's tensors take beside the model. Raises `ModelFileError`."""
    return read_header(path).tensor_bytes


def adapter_compute_bytes(path: Path, n_ubatch: int) -> int:
    """Bytes that compute buffers may grow by: the change of one weight's output, for every row of a graph.

    Measured: that of the widest weight, or nothing where something else is the peak. Output heads,
    which see few rows, are left out.
    """
    outputs = [
        tensor.dimensions[1]
        for tensor in read_header(path).tensors
        if tensor.name.endswith(_B)
        and tensor.name != f"output.weight{_B}"
        and len(tensor.dimensions) > 1
    ]
    return n_ubatch * max(outputs, default=0) * 4


def check_adapter(path: Path, model: Path) -> None:
    """Raise `ModelFileError`, with what to do, unless `path` is a LoRA adapter made for `model`.

    Both files are read no further than their headers; a truncated adapter is noticed all the same,
    by the end of its last tensor.
    """
    adapter, base = read_header(path), read_header(model)
    _check_kind(adapter)
    if adapter.architecture != base.architecture:
        message = (
            f"The adapter {path} was made for the architecture {adapter.architecture!r}, but "
            f"{model} is {base.architecture!r}. Choose the adapter's own base model."
        )
        raise ModelFileError(message)
    _check_complete(adapter)
    _check_pairs(adapter, base)


def _check_kind(adapter: GgufHeader) -> None:
    kind = adapter.metadata.get("general.type", "model")
    if kind != "adapter":
        if kind in ("model", "") and adapter.array_length("tokenizer.ggml.tokens"):
            message = (
                f"{adapter.path} is a whole model, not an adapter. Serve it as the model itself: "
                f"FROM {adapter.path} in a Modelfile, or model.path."
            )
        else:
            message = (
                f"{adapter.path} is no adapter: its general.type is {kind!r}. Give a LoRA adapter's "
                "GGUF, as llama.cpp's convert_lora_to_gguf.py writes it."
            )
        raise ModelFileError(message)
    form = adapter.metadata.get("adapter.type", "")
    if form != "lora":
        raise ModelFileError(
            f"{adapter.path} is an adapter of type {form!r}; only 'lora' can be applied."
        )
    if adapter.array_length(_ALORA):
        raise ModelFileError(
            f"{adapter.path} is an activated LoRA, which changes the model from a token sequence on; "
            "only plain LoRA adapters can be applied."
        )
    alpha = adapter.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelFileError(f"{adapter.path} is not sound: its adapter.lora.alpha is {alpha!r}.")


def _check_complete(adapter: GgufHeader) -> None:
    end = max((tensor.offset + tensor.n_bytes for tensor in adapter.tensors), default=0)
    missing = adapter.data_offset + end - adapter.file_size
    if missing > 0:
        raise ModelFileError(
            f"{adapter.path} is truncated: {missing:,} bytes of its tensors are missing. "
            "Download it again."
        )


def _check_pairs(adapter: GgufHeader, base: GgufHeader) -> None:
    """Hold every pair of matrices against the weight that it changes."""
    weights = {tensor.name: tensor for tensor in base.tensors}
    # Of a split model only the first part was read; llama.cpp itself knows all parts.
    partial = base.metadata.get("split.count", 1) != 1
    for name, (a, b) in _pairs(adapter).items():
        weight = weights.get(name)
        if weight is None:
            if partial:
                continue
            raise ModelFileError(
                f"{adapter.path} changes {name}, which {base.path} does not have. Choose the "
                "adapter's own base model."
            )
        problem = _misfit(weight, a, b)
        if problem:
            raise ModelFileError(
                f"{adapter.path} does not fit {base.path}: {name} {problem}. Choose the adapter's "
                "own base model."
            )


def _pairs(adapter: GgufHeader) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Weight name → its two matrices. Raises `ModelFileError` for what belongs to no pair."""
    found: dict[str, dict[str, TensorInfo]] = {}
    left_out = []
    for tensor in adapter.tensors:
        suffix = tensor.name[-len(_A) :]
        if suffix in (_A, _B):
            found.setdefault(tensor.name.removesuffix(suffix), {})[suffix] = tensor
        elif tensor.name.endswith("_norm.weight"):
            left_out.append(tensor.name)
        else:
            raise ModelFileError(
                f"{adapter.path} holds {tensor.name!r}, which is no part of a LoRA adapter. Convert "
                "it again with llama.cpp's convert_lora_to_gguf.py."
            )
    if left_out:
        _LOG.warning(
            "%s also changes %d norm tensors (%s …), which llama.cpp cannot apply: the rest is used",
            adapter.path,
            len(left_out),
            left_out[0],
        )
    single = next((name for name, pair in found.items() if len(pair) != 2), None)
    if single is not None or not found:
        missing = f"a matrix of {single} is missing" if single else "it changes nothing"
        raise ModelFileError(f"{adapter.path} is not sound: {missing}. Download it again.")
    return {name: (pair[_A], pair[_B]) for name, pair in found.items()}


def _misfit(weight: TensorInfo, a: TensorInfo, b: TensorInfo) -> str | None:
    """What is wrong with B·A as a change of `weight`; dimensions have the contiguous one first.

    A is (in, rank), B is (rank, out); for token embeddings A is (rank, vocabulary) and B is
    (rank, in) (llama-adapter.cpp). Experts are a third dimension of all three.
    """
    columns, rows, *experts = (*weight.dimensions, 1)[: max(3, len(weight.dimensions))]
    if weight.name == "token_embd.weight":
        wanted = a.dimensions[1:] == (rows,) and b.dimensions[1:] == (columns,)
        ranks = (a.dimensions[0], b.dimensions[0])
    else:
        many = tuple(experts) if experts[0] > 1 else ()
        wanted = a.dimensions[:1] + a.dimensions[2:] == (columns, *many)
        wanted = wanted and b.dimensions[1:] == (rows, *many)
        ranks = (a.dimensions[1] if len(a.dimensions) > 1 else 1, b.dimensions[0])
    if not wanted:
        return f"is {weight.dimensions}, and the adapter's matrices are {a.dimensions} and {b.dimensions}"
    if ranks[0] != ranks[1] or ranks[0] < 1:
        return f"has matrices of rank {ranks[0]} and {ranks[1]}"
    unknown = sorted({a.type_name, b.type_name}.difference(_MATRIX_TYPES))
    if unknown:
        return f"has matrices of type {', '.join(unknown)}, not {', '.join(_MATRIX_TYPES)}"
    return None
