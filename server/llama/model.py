"""Loading a GGUF into llama.cpp: model, context, and the facts about them."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from server.catalog.file_sample import file_sample
from server.catalog.gguf_split import part_paths
from server.catalog.plan import Allocated
from server.core.errors import ConfigError, ModelFileError
from server.engine.interface import ModelInfo
from server.engine.plan import CallShape
from server.llama.adapter import attach_adapter
from server.llama.allocated import parse_allocated
from server.llama.native import (
    PINNED_VERSION,
    Address,
    ContextParams,
    Library,
    ModelParams,
    ProgressCallback,
    TensorOverride,
)
from server.llama.params import KV_TYPES, ROPE_SCALINGS, LlamaParams

_LOAD_NONE, _LOAD_MMAP, _LOAD_MLOCK, _LOAD_MMAP_MLOCK = 0, 1, 2, 3
"""`llama_load_mode`."""
_EXPERTS = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""What llama.cpp's `--n-cpu-moe` matches (common/common.h)."""
_SPLIT_NONE = 0
_FLASH = {"on": 1, "off": 0}
_ALL_LAYERS = -1
_CPU_ROWS = 64
"""`GGML_FA_TILE_Q` (ggml-cpu/common.h)."""
_LONGEST_VALUE = 256
"""Bytes kept of a metadata value; the chat template and the token list are longer and have their
own ways."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Native handles, owned by whoever holds this; `free_model` ends them."""

    library: Library
    model: Address
    context: Address
    allocated: Allocated
    """What the load took, by llama.cpp's own log."""
    owns_weights: bool = True
    """Whether the weights end with the context."""


def load_model(
    library: Library, params: LlamaParams, progress: Callable[[float], None]
) -> LoadedModel:
    """Load file and context in the calling thread.

    `progress` takes 0 to 1; an exception in it stops the load.

    Raises `ModelFileError` or `ConfigError` with llama.cpp's own last error.
    """
    library.log.clear()
    model = load_weights(library, params, progress)
    try:
        refuse_non_decoders(library, model)
        return replace(context_on(library, model, params), owns_weights=True)
    except BaseException:
        library.model_free(model)
        raise


def context_on(library: Library, model: Address, params: LlamaParams) -> LoadedModel:
    """Make a context, and what belongs to it, over weights that outlive it. Raises as `load_model`."""
    context = _make_context(library, model, params)
    allocated = parse_allocated(library.log.sizes())
    loaded = LoadedModel(library, model, context, allocated, owns_weights=False)
    try:
        attach_adapter(library, loaded, params)
    except BaseException:
        free_model(loaded)
        raise
    return loaded


def _make_context(library: Library, model: Address, params: LlamaParams) -> Address:
    context = library.init_from_model(model, _context_params(library, params))
    if not context:
        raise ConfigError(
            f"llama.cpp could not make a context: {library.log.reason()}. If memory ran out, lower "
            "slots, n_ctx or kv_cells, or choose kv_type q8_0."
        )
    return context


def load_weights(
    library: Library, params: LlamaParams, progress: Callable[[float], None]
) -> Address:
    """Load the file alone; whoever asks for it frees it. Raises as `load_model`."""
    failure: list[BaseException] = []

    def report(fraction: float, _data: object) -> bool:
        try:
            progress(fraction)
        except BaseException as error:  # noqa: BLE001 - nothing may cross into C; raised again below
            failure.append(error)
        return not failure

    callback = ProgressCallback(report)
    native = model_params(library, params)
    native.progress_callback = callback
    none = (ctypes.c_void_p * 1)()
    if native.n_gpu_layers == 0:
        # With no layer on it, a card would still be lent for long prompts, memory and all.
        native.devices = ctypes.cast(none, ctypes.c_void_p)  # type: ignore[assignment]
    # llama.cpp reads them during the load only, as it does the callback.
    overrides = expert_overrides(library, params)
    native.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)  # type: ignore[assignment]
    model = library.model_load_from_file(str(params.path).encode(), native)
    if failure:
        if model:
            library.model_free(model)
        raise failure[0]
    if not model:
        reason = library.log.reason()
        message = f"llama.cpp cannot load {params.path}: {reason}. Download the file again, or choose another one."
        raise ModelFileError(message)
    return model


def refuse_non_decoders(library: Library, model: Address) -> None:
    """Raise `ModelFileError` for models that cannot continue a text."""
    if not library.model_has_decoder(model):
        raise ModelFileError(
            "The model only encodes (embeddings): it cannot generate text. Choose a language model."
        )
    if library.model_has_encoder(model):
        raise ModelFileError(
            "Encoder-decoder models such as T5 are not supported. Choose a decoder-only model."
        )


def expert_overrides(library: Library, params: LlamaParams) -> ctypes.Array[TensorOverride]:
    """Keep the experts of the first `n_cpu_moe` layers in system memory; a NULL pattern ends the list."""
    made = (TensorOverride * (params.n_cpu_moe + 1))()
    for layer in range(params.n_cpu_moe):
        made[layer] = TensorOverride(_EXPERTS.format(layer).encode(), library.cpu_buffer_type())
    return made


def gpu_layers(library: Library, params: LlamaParams) -> int:
    """`llama_model_params.n_gpu_layers`: 0 on a build that has no GPU; -1 is all."""
    if params.n_gpu_layers == "all":
        return _ALL_LAYERS
    if params.n_gpu_layers == "auto":
        return _ALL_LAYERS if library.supports_gpu_offload() else 0
    return params.n_gpu_layers


def model_params(library: Library, params: LlamaParams) -> ModelParams:
    """Map `params` to llama.cpp's structure."""
    native = library.model_default_params()
    native.n_gpu_layers = gpu_layers(library, params)
    native.main_gpu = params.main_gpu
    # One GPU: without this, llama.cpp spreads layers over every card it finds.
    native.split_mode = _SPLIT_NONE
    native.use_extra_bufts = params.extra_buffers
    if params.mmap:
        native.load_mode = _LOAD_MMAP_MLOCK if params.mlock else _LOAD_MMAP
    else:
        native.load_mode = _LOAD_MLOCK if params.mlock else _LOAD_NONE
    return native


def _context_params(library: Library, params: LlamaParams) -> ContextParams:
    native = library.context_default_params()
    native.n_ctx = params.native_n_ctx
    native.n_batch = params.effective_n_batch
    native.n_ubatch = min(params.n_ubatch, params.effective_n_batch)
    native.n_seq_max = params.slots
    # The default reserves n_ubatch × n_vocab logits; fewer than n_seq_max abort the process.
    native.n_outputs_max = params.outputs
    native.n_outputs_max_per_seq = params.draft_rows + 1
    native.n_threads = params.threads
    native.n_threads_batch = params.batch_thread_count
    native.kv_unified = params.unified
    native.swa_full = True
    native.flash_attn_type = _FLASH.get(params.flash_attention, _FLASH["on"])
    native.type_k = KV_TYPES[params.kv_type]
    native.type_v = KV_TYPES[params.value_type]
    native.rope_scaling_type = ROPE_SCALINGS[params.rope_scaling]
    native.rope_freq_base = params.rope_freq_base
    native.rope_freq_scale = params.rope_freq_scale
    native.yarn_orig_ctx = params.yarn_orig_ctx
    for name in ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
        value = getattr(params, name)
        if value is not None:
            setattr(native, name, value)
    native.no_perf = True
    return native


def free_model(loaded: LoadedModel) -> None:
    """Free context, then weights where they are its own, and give the heap's free pages back to the system."""
    loaded.library.free(loaded.context)
    if loaded.owns_weights:
        loaded.library.model_free(loaded.model)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def read_info(loaded: LoadedModel, params: LlamaParams, n_vocab: int) -> ModelInfo:
    """Collect the facts about a loaded model."""
    library, model = loaded.library, loaded.model
    metadata = _read_metadata(library, model)
    template = library.model_chat_template(model, None)
    partial_removal = not (library.model_is_recurrent(model) or library.model_is_hybrid(model))
    return ModelInfo(
        path=str(params.path),
        architecture=metadata.get("general.architecture", ""),
        description=_describe(library, model),
        size_bytes=library.model_size(model),
        n_params=library.model_n_params(model),
        n_vocab=n_vocab,
        n_ctx_train=library.model_n_ctx_train(model),
        chat_template=None if template is None else template.decode("utf-8", "replace"),
        fingerprint=fingerprint(params),
        created=int(params.path.stat().st_mtime),
        metadata=metadata,
        partial_removal=partial_removal,
        calls=call_shape(library, model, params),
        shares_cells=partial_removal and params.unified,
        # A state leaves out the cells that a sliding window has passed: cut to less, it would lack some.
        # Without flash attention V is stored by dimension, and cells that do not follow each other, as those of the
        # unified layout, take a copy each for every one.
        saves_cells=library.model_n_swa(model) == 0 and (params.flash or not params.unified),
    )


def call_shape(library: Library, model: Address, params: LlamaParams) -> CallShape:
    """Return how calls should look.

    A CPU takes 64 rows in the time of some 40 to 60 single ones. Its flash attention takes each K and V from memory
    once for 64 rows, in calls that have as many (ggml-cpu/ops.cpp: `use_tiled`), and once for each row otherwise; of
    split streams every one would have to have as many.
    """
    on_cpu = 0 <= gpu_layers(library, params) < library.model_n_layer(model)
    tiled = (
        params.unified
        and params.kv_type == params.value_type
        and params.kv_type in ("f16", "f32")
        and params.flash
    )
    return CallShape(
        tile_rows=_CPU_ROWS if on_cpu and tiled else 1,
        chunk_rows=_CPU_ROWS if on_cpu else 1,
        one_pass=params.unified,
    )


def _read_metadata(library: Library, model: Address) -> dict[str, str]:
    """Read all scalar metadata; llama.cpp renders numbers and short arrays as text."""
    buffer = ctypes.create_string_buffer(_LONGEST_VALUE)

    def text(read: Callable[[Address, int, Any, int], int], index: int) -> str:
        length = read(model, index, buffer, _LONGEST_VALUE)
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""

    count = library.model_meta_count(model)
    keys = [text(library.model_meta_key_by_index, index) for index in range(count)]
    values = [text(library.model_meta_val_str_by_index, index) for index in range(count)]
    return dict(zip(keys, values, strict=True))


def _describe(library: Library, model: Address) -> str:
    buffer = ctypes.create_string_buffer(_LONGEST_VALUE)
    library.model_desc(model, buffer, _LONGEST_VALUE)
    # llama.cpp knows the sizes that families come in, and writes this for any other.
    return buffer.value.decode("utf-8", "replace").replace(
        " ?B ", f" {_parameters(library, model)} "
    )


def _parameters(library: Library, model: Address) -> str:
    count = library.model_n_params(model)
    return f"{count / 1e9:.3g}B" if count >= 10**9 else f"{count / 1e6:.3g}M"


def fingerprint(params: LlamaParams) -> str:
    """`fp_` and 10 hexadecimal digits: a hash of llama.cpp build, KV types, file and adapter (size, both ends)."""
    digest = hashlib.blake2b(digest_size=5)
    digest.update(f"{PINNED_VERSION}/{params.kv_type}/{params.value_type}/".encode())
    for part in part_paths(params.path):
        digest.update(file_sample(part))
    if params.adapter is not None:
        digest.update(f"/{params.adapter_scale!r}/".encode())
        digest.update(file_sample(params.adapter))
    return f"fp_{digest.hexdigest()}"
