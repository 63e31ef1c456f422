"""The cards in llama.cpp's own order, which is what `main_gpu` counts."""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as bindings

from server.llama.native import library

_GPU = 1  # GGML_BACKEND_DEVICE_TYPE_GPU


class _Props(ctypes.Structure):
    """`struct ggml_backend_dev_props` of ggml-backend.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("caps", ctypes.c_bool * 4),
    )


def gpu_bus_ids() -> list[str]:
    """Return the PCI bus id of each GPU (`0000:3b:00.0`), empty where it does not say.

    CUDA orders and hides cards as CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER say; this is the result.
    """
    library()  # initialises the back ends
    handle = ctypes.CDLL(bindings._lib._name)  # noqa: SLF001 - as in `native`
    count, get, read = (
        handle["ggml_backend_dev_count"],
        handle["ggml_backend_dev_get"],
        handle["ggml_backend_dev_get_props"],
    )
    count.argtypes, count.restype = [], ctypes.c_size_t
    get.argtypes, get.restype = [ctypes.c_size_t], ctypes.c_void_p
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.POINTER(_Props)], None
    found = []
    for index in range(count()):
        props = _Props()
        read(get(index), ctypes.byref(props))
        if props.type == _GPU:
            found.append((props.device_id or b"").decode())
    return found
