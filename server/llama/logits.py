"""Reading floats where llama.cpp has them; valid until the context's next decode call."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from server.llama.native import Address

FLOAT_BYTES = 4


def float_at(address: Address) -> float:
    """Read one."""
    return ctypes.c_float.from_address(address).value


def floats_at(address: Address, count: int) -> npt.NDArray[np.float32]:
    """View `count` of them."""
    view = (ctypes.c_float * count).from_address(address)
    return np.ctypeslib.as_array(view)
