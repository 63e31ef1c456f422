"""Random weights, written directly as quantized blocks, a bounded number of bytes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from synthetic.tensors import BLOCK, BYTES, F32, Q4_K, Tensor

PIECE = 1 << 24
"""Bytes of random weights made in one go, which bounds the memory that writing takes."""


def random_q4_k(
    random: np.random.Generator, blocks: int, deviation: float
) -> npt.NDArray[np.uint8]:
    """Make Q4_K blocks whose weights have mean 0 and the given standard deviation.

    A weight is d·s·q - dmin·m with 6-bit s and m and 4-bit q (`block_q4_K`). With s = m = 15 and
    dmin = 7.5 d it is 15 d (q - 7.5), and uniform q deviate by 4.61.
    """
    raw = np.frombuffer(random.bytes(blocks * 144), dtype=np.uint8).reshape(blocks, 144).copy()
    scale = deviation / (15 * 4.61)
    raw[:, 0:4] = np.array([scale, 7.5 * scale], dtype="<f2").view(np.uint8)
    raw[:, 4:12] = 15
    raw[:, 12:16] = 0xFF
    return raw


def random_q6_k(
    random: np.random.Generator, blocks: int, deviation: float
) -> npt.NDArray[np.uint8]:
    """Make Q6_K blocks: weights are d·s·(q - 32), 8-bit s, 6-bit q (`block_q6_K`); here s = 16, q deviate by 18.47."""
    raw = np.frombuffer(random.bytes(blocks * 210), dtype=np.uint8).reshape(blocks, 210).copy()
    raw[:, 192:208] = 16
    raw[:, 208:210] = np.array([deviation / (16 * 18.47)], dtype="<f2").view(np.uint8)
    return raw


def chunks(tensor: Tensor, random: np.random.Generator) -> Iterator[npt.NDArray[np.generic]]:
    """Yield a tensor's data in pieces of at most `PIECE` bytes; float32 ones, all small, in one."""
    deviation = tensor.gain / math.sqrt(tensor.shape[-1])
    if tensor.kind == F32:
        if len(tensor.shape) == 1:
            yield np.full(tensor.shape, tensor.gain, dtype=np.float32)
        else:
            yield random.standard_normal(tensor.shape, dtype=np.float32) * np.float32(deviation)
        return
    make = random_q4_k if tensor.kind == Q4_K else random_q6_k
    left = math.prod(tensor.shape) // BLOCK
    while left:
        blocks = min(left, PIECE // BYTES[tensor.kind])
        yield make(random, blocks, deviation)
        left -= blocks
