"""The part of llama.cpp's C API that this server uses, typed and checked.

One `Library` holds bound C functions. Most release the GIL while they run (`ctypes.CDLL`); calls
that take about a microsecond go through `ctypes.PyDLL`, because giving the GIL away costs more than
they do. Handles (`model`, `context`, `vocab`, `memory`, `sampler`) are plain addresses: ints that
are never 0.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as bindings

from server.core.errors import ConfigError
from server.llama.native_log import NativeLog

PINNED_VERSION = "0.3.36"
"""llama-cpp-python's release whose structures are mirrored here; llama.cpp's ABI moves weekly."""

Address = int

_P = ctypes.c_void_p
_I32 = ctypes.c_int32
_U32 = ctypes.c_uint32
_F32 = ctypes.c_float
_BOOL = ctypes.c_bool
_SIZE = ctypes.c_size_t
_STR = ctypes.c_char_p

ModelParams = bindings.llama_model_params
ContextParams = bindings.llama_context_params
Batch = bindings.llama_batch
LogitBias = bindings.llama_logit_bias
ProgressCallback = bindings.llama_progress_callback


class TensorOverride(ctypes.Structure):
    """`llama_model_tensor_buft_override`: where tensors go whose names match a pattern."""

    _fields_ = (("pattern", _STR), ("buffer_type", _P))


@dataclass(frozen=True, slots=True)
class _Signature:
    """C types of one function. `quick` calls keep the GIL."""

    result: Any
    arguments: tuple[Any, ...]
    quick: bool = True


_SIGNATURES: dict[str, _Signature] = {
    "backend_init": _Signature(None, ()),
    "model_default_params": _Signature(ModelParams, ()),
    "context_default_params": _Signature(ContextParams, ()),
    "sampler_chain_default_params": _Signature(bindings.llama_sampler_chain_params, ()),
    "supports_gpu_offload": _Signature(_BOOL, ()),
    "model_load_from_file": _Signature(_P, (_STR, ModelParams), quick=False),
    "model_free": _Signature(None, (_P,), quick=False),
    "adapter_lora_init": _Signature(_P, (_P, _STR), quick=False),
    "adapter_lora_free": _Signature(None, (_P,), quick=False),
    "set_adapters_lora": _Signature(
        _I32, (_P, ctypes.POINTER(_P), _SIZE, ctypes.POINTER(_F32)), quick=False
    ),
    "init_from_model": _Signature(_P, (_P, ContextParams), quick=False),
    "free": _Signature(None, (_P,), quick=False),
    "model_get_vocab": _Signature(_P, (_P,)),
    "model_desc": _Signature(_I32, (_P, _STR, _SIZE)),
    "model_size": _Signature(ctypes.c_uint64, (_P,)),
    "model_n_params": _Signature(ctypes.c_uint64, (_P,)),
    "model_n_ctx_train": _Signature(_I32, (_P,)),
    "model_n_layer": _Signature(_I32, (_P,)),
    "model_n_swa": _Signature(_I32, (_P,)),
    "model_has_encoder": _Signature(_BOOL, (_P,)),
    "model_has_decoder": _Signature(_BOOL, (_P,)),
    "model_is_recurrent": _Signature(_BOOL, (_P,)),
    "model_is_hybrid": _Signature(_BOOL, (_P,)),
    "model_chat_template": _Signature(_STR, (_P, _STR)),
    "model_meta_count": _Signature(_I32, (_P,)),
    "model_meta_key_by_index": _Signature(_I32, (_P, _I32, _STR, _SIZE)),
    "model_meta_val_str_by_index": _Signature(_I32, (_P, _I32, _STR, _SIZE)),
    "n_ctx": _Signature(_U32, (_P,)),
    "n_ctx_seq": _Signature(_U32, (_P,)),
    "n_batch": _Signature(_U32, (_P,)),
    "n_ubatch": _Signature(_U32, (_P,)),
    "n_seq_max": _Signature(_U32, (_P,)),
    "get_memory": _Signature(_P, (_P,)),
    "memory_clear": _Signature(None, (_P, _BOOL), quick=False),
    "memory_seq_rm": _Signature(_BOOL, (_P, _I32, _I32, _I32)),
    "memory_seq_pos_max": _Signature(_I32, (_P, _I32)),
    "memory_seq_cp": _Signature(None, (_P, _I32, _I32, _I32, _I32)),
    "state_seq_get_size": _Signature(_SIZE, (_P, _I32), quick=False),
    "state_seq_get_data": _Signature(_SIZE, (_P, _P, _SIZE, _I32), quick=False),
    "state_seq_set_data": _Signature(_SIZE, (_P, _P, _SIZE, _I32), quick=False),
    "decode": _Signature(_I32, (_P, Batch), quick=False),
    "synchronize": _Signature(None, (_P,), quick=False),
    "get_logits_ith": _Signature(_P, (_P, _I32)),
    "vocab_type": _Signature(ctypes.c_int, (_P,)),
    "vocab_n_tokens": _Signature(_I32, (_P,)),
    "vocab_bos": _Signature(_I32, (_P,)),
    "vocab_eos": _Signature(_I32, (_P,)),
    "vocab_eot": _Signature(_I32, (_P,)),
    "vocab_get_add_bos": _Signature(_BOOL, (_P,)),
    "vocab_get_attr": _Signature(ctypes.c_int, (_P, _I32)),
    "vocab_is_eog": _Signature(_BOOL, (_P, _I32)),
    "vocab_get_suppress_tokens": _Signature(_P, (_P, ctypes.POINTER(_I32))),
    "tokenize": _Signature(
        _I32, (_P, _STR, _I32, ctypes.POINTER(_I32), _I32, _BOOL, _BOOL), quick=False
    ),
    "token_to_piece": _Signature(_I32, (_P, _I32, _STR, _I32, _I32, _BOOL)),
    "sampler_chain_init": _Signature(_P, (bindings.llama_sampler_chain_params,)),
    "sampler_chain_add": _Signature(None, (_P, _P)),
    "sampler_free": _Signature(None, (_P,)),
    "sampler_clone": _Signature(_P, (_P,)),
    "sampler_accept": _Signature(None, (_P, _I32)),
    # 0.1 to 4 ms: as fast with the GIL kept, but the event loop would stand still meanwhile.
    "sampler_sample": _Signature(_I32, (_P, _P, _I32), quick=False),
    "sampler_init_greedy": _Signature(_P, ()),
    "sampler_init_dist": _Signature(_P, (_U32,)),
    "sampler_init_top_k": _Signature(_P, (_I32,)),
    "sampler_init_top_p": _Signature(_P, (_F32, _SIZE)),
    "sampler_init_min_p": _Signature(_P, (_F32, _SIZE)),
    "sampler_init_typical": _Signature(_P, (_F32, _SIZE)),
    "sampler_init_temp": _Signature(_P, (_F32,)),
    "sampler_init_temp_ext": _Signature(_P, (_F32, _F32, _F32)),
    "sampler_init_xtc": _Signature(_P, (_F32, _F32, _SIZE, _U32)),
    "sampler_init_top_n_sigma": _Signature(_P, (_F32,)),
    "sampler_init_mirostat": _Signature(_P, (_I32, _U32, _F32, _F32, _I32)),
    "sampler_init_mirostat_v2": _Signature(_P, (_U32, _F32, _F32)),
    "sampler_init_penalties": _Signature(_P, (_I32, _I32, _F32, _F32, _F32)),
    "sampler_init_dry": _Signature(_P, (_P, _F32, _F32, _I32, _I32, ctypes.POINTER(_STR), _SIZE)),
    "sampler_init_logit_bias": _Signature(_P, (_I32, _I32, ctypes.POINTER(LogitBias))),
}


@dataclass(frozen=True, slots=True)
class Library:
    """The bound functions, named as in `include/llama.h` without the `llama_` prefix."""

    backend_init: Callable[[], None]
    model_default_params: Callable[[], ModelParams]
    context_default_params: Callable[[], ContextParams]
    sampler_chain_default_params: Callable[[], Any]
    supports_gpu_offload: Callable[[], bool]
    model_load_from_file: Callable[[bytes, ModelParams], Address | None]
    model_free: Callable[[Address], None]
    adapter_lora_init: Callable[[Address, bytes], Address | None]
    adapter_lora_free: Callable[[Address], None]
    set_adapters_lora: Callable[[Address, Any, int, Any], int]
    init_from_model: Callable[[Address, ContextParams], Address | None]
    free: Callable[[Address], None]
    model_get_vocab: Callable[[Address], Address]
    model_desc: Callable[[Address, Any, int], int]
    model_size: Callable[[Address], int]
    model_n_params: Callable[[Address], int]
    model_n_ctx_train: Callable[[Address], int]
    model_n_layer: Callable[[Address], int]
    model_n_swa: Callable[[Address], int]
    model_has_encoder: Callable[[Address], bool]
    model_has_decoder: Callable[[Address], bool]
    model_is_recurrent: Callable[[Address], bool]
    model_is_hybrid: Callable[[Address], bool]
    model_chat_template: Callable[[Address, bytes | None], bytes | None]
    model_meta_count: Callable[[Address], int]
    model_meta_key_by_index: Callable[[Address, int, Any, int], int]
    model_meta_val_str_by_index: Callable[[Address, int, Any, int], int]
    n_ctx: Callable[[Address], int]
    n_ctx_seq: Callable[[Address], int]
    n_batch: Callable[[Address], int]
    n_ubatch: Callable[[Address], int]
    n_seq_max: Callable[[Address], int]
    get_memory: Callable[[Address], Address]
    memory_clear: Callable[[Address, bool], None]
    memory_seq_rm: Callable[[Address, int, int, int], bool]
    memory_seq_pos_max: Callable[[Address, int], int]
    memory_seq_cp: Callable[[Address, int, int, int, int], None]
    state_seq_get_size: Callable[[Address, int], int]
    state_seq_get_data: Callable[[Address, Any, int, int], int]
    state_seq_set_data: Callable[[Address, Any, int, int], int]
    decode: Callable[[Address, Batch], int]
    synchronize: Callable[[Address], None]
    get_logits_ith: Callable[[Address, int], Address | None]
    vocab_type: Callable[[Address], int]
    vocab_n_tokens: Callable[[Address], int]
    vocab_bos: Callable[[Address], int]
    vocab_eos: Callable[[Address], int]
    vocab_eot: Callable[[Address], int]
    vocab_get_add_bos: Callable[[Address], bool]
    vocab_get_attr: Callable[[Address, int], int]
    vocab_is_eog: Callable[[Address, int], bool]
    vocab_get_suppress_tokens: Callable[[Address, Any], Address | None]
    tokenize: Callable[[Address, bytes, int, Any, int, bool, bool], int]
    token_to_piece: Callable[[Address, int, Any, int, int, bool], int]
    sampler_chain_init: Callable[[Any], Address]
    sampler_chain_add: Callable[[Address, Address], None]
    sampler_free: Callable[[Address], None]
    sampler_clone: Callable[[Address], Address]
    sampler_accept: Callable[[Address, int], None]
    sampler_sample: Callable[[Address, Address, int], int]
    sampler_init_greedy: Callable[[], Address]
    sampler_init_dist: Callable[[int], Address]
    sampler_init_top_k: Callable[[int], Address]
    sampler_init_top_p: Callable[[float, int], Address]
    sampler_init_min_p: Callable[[float, int], Address]
    sampler_init_typical: Callable[[float, int], Address]
    sampler_init_temp: Callable[[float], Address]
    sampler_init_temp_ext: Callable[[float, float, float], Address]
    sampler_init_xtc: Callable[[float, float, int, int], Address]
    sampler_init_top_n_sigma: Callable[[float], Address]
    sampler_init_mirostat: Callable[[int, int, float, float, int], Address]
    sampler_init_mirostat_v2: Callable[[int, float, float], Address]
    sampler_init_penalties: Callable[[int, int, float, float, float], Address]
    sampler_init_dry: Callable[[Address, float, float, int, int, Any, int], Address]
    sampler_init_logit_bias: Callable[[int, int, Any], Address]
    cpu_buffer_type: Callable[[], Address]
    """`ggml_backend_cpu_buffer_type`: plain system memory."""
    log: NativeLog
    """What the library said lately; error messages quote it."""


def _bind(name: str, signature: _Signature, handle: ctypes.CDLL) -> Any:
    """Return a function of its own (not the handle's shared attribute), checked against the bindings' own types."""
    symbol = f"llama_{name}"
    known = getattr(bindings, symbol)
    if [ctypes.sizeof(t) for t in known.argtypes] != [
        ctypes.sizeof(t) for t in signature.arguments
    ]:
        message = f"{symbol} has other arguments than this server knows; install llama-cpp-python=={PINNED_VERSION}."
        raise ConfigError(message)
    function = handle[symbol]
    function.restype = signature.result
    function.argtypes = list(signature.arguments)
    return function


def _cpu_buffer_type(handle: ctypes.CDLL) -> Callable[[], Address]:
    # The symbol is libggml-base's, which libllama depends on: its handle finds it.
    function = handle["ggml_backend_cpu_buffer_type"]
    function.restype = _P
    function.argtypes = []
    return function


def _check_version() -> None:
    """Raise `ConfigError` unless the installed release is the pinned one."""
    if llama_cpp.__version__ != PINNED_VERSION:
        message = (
            f"llama-cpp-python {llama_cpp.__version__} is installed, but this server mirrors the C structures of "
            f"{PINNED_VERSION} and would crash. Run `make install`, or: pip install llama-cpp-python=={PINNED_VERSION}"
        )
        raise ConfigError(message)


@functools.cache
def library() -> Library:
    """Bind and initialise llama.cpp, once per process: the C library is one per process too.

    Raises `ConfigError` when another release than the pinned one is installed.
    """
    _check_version()
    # An abort would otherwise fork a debugger, which hangs for seconds in containers.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    path = bindings._lib._name  # noqa: SLF001 - the bindings offer no other way to the file they loaded
    releasing, keeping = ctypes.CDLL(path), ctypes.PyDLL(path)
    functions = {
        name: _bind(name, signature, keeping if signature.quick else releasing)
        for name, signature in _SIGNATURES.items()
    }
    missing = {f.name for f in fields(Library)} - functions.keys() - {"log", "cpu_buffer_type"}
    if missing:
        raise AssertionError(f"no signature for {sorted(missing)}")
    log = NativeLog()
    log.install(releasing)
    bound = Library(log=log, cpu_buffer_type=_cpu_buffer_type(keeping), **functions)
    bound.backend_init()
    return bound
