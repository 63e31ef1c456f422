"""The file: header, then one tensor after the other, never more than a piece of one in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import numpy.typing as npt

from synthetic.blocks import chunks
from synthetic.rounds import Rounds
from synthetic.shapes import Shape
from synthetic.tensors import BLOCK, BYTES, F32, Tensor, tensors
from synthetic.vocabulary import add_tokenizer

Progress = Callable[[int, int], None]
_ALIGNMENT = 32
_MARK = "shape, random weights"
"""Ends the name in the header."""
_NAME_WITHIN = 4096
"""The name is the second entry of the header."""
_HEADER_BYTES = 8_000_000
"""More than header and vocabulary take."""


def write_shape(
    shape: Shape,
    name: str,
    out: Path,
    *,
    seed: int = 0,
    header_only: bool = False,
    rounds: Rounds | None = None,
    progress: Progress | None = None,
) -> None:
    """Write `shape`, or `rounds` of it, to `out`, by way of `out`.partial: an interrupted run leaves no half of a file.

    `header_only` leaves the weights as a hole of the right size. `progress` takes the bytes of weights
    written and their sum. Raises `OSError`, before anything is written when the disk is too full or
    `out` is a folder or somebody's file.
    """
    _check_target(out)
    todo = list(tensors(shape)) if rounds is None else rounds.tensors
    data = chunks if rounds is None else rounds.data
    total = sum(tensor.n_bytes for tensor in todo)
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = _HEADER_BYTES + (0 if header_only else total)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise OSError(
            f"{out.parent} has {free / 1e9:.1f} GB left, and {out.name} takes {needed / 1e9:.1f} GB. "
            "Make room, or write to another disk."
        )
    partial = out.with_name(out.name + ".partial")
    try:
        _write_header(partial, shape, name, todo)
        with partial.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            # GGUFWriter left the file at the end of the tensor table.
            file.seek(_aligned(file.tell()))
            if header_only:
                file.truncate(file.tell() + sum(_aligned(tensor.n_bytes) for tensor in todo))
            else:
                _write_data(file, todo, data, np.random.default_rng(seed), progress)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _check_target(out: Path) -> None:
    """Raise `OSError` unless `out` is free, or has what this program wrote: never a real model."""
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder. Name the file to write in it.")
    if not out.exists():
        return
    with out.open("rb") as file:
        if _MARK.encode() in file.read(_NAME_WITHIN):
            return
    raise FileExistsError(
        f"{out} is there already, and not a synthetic model. Choose another name, or delete it first."
    )


def _write_data(
    file: BinaryIO,
    todo: list[Tensor],
    data: Callable[[Tensor, np.random.Generator], Iterator[npt.NDArray[np.generic]]],
    random: np.random.Generator,
    progress: Progress | None,
) -> None:
    done, total = 0, sum(tensor.n_bytes for tensor in todo)
    for tensor in todo:
        for piece in data(tensor, random):
            file.write(piece.data)
            done += piece.nbytes
            if progress is not None:
                progress(done, total)
        file.truncate(_aligned(file.tell()))
        file.seek(0, os.SEEK_END)


def _write_header(path: Path, shape: Shape, name: str, todo: list[Tensor]) -> None:
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(f"{name} {_MARK}")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q4_K_M))
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    if shape.architecture == "phi3":
        writer.add_rope_dimension_count(shape.head_size)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.expert_feed_forward)
    add_tokenizer(writer, shape.n_vocab)
    for tensor in todo:
        _add_info(writer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add_info(writer: gguf.GGUFWriter, tensor: Tensor) -> None:
    """Announce a tensor; quantized shapes are given in bytes per row, as the writer wants them."""
    if tensor.kind == F32:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes)
        return
    *rows, columns = tensor.shape
    in_bytes = (*rows, columns // BLOCK * BYTES[tensor.kind])
    kind = tensor.kind
    writer.add_tensor_info(
        tensor.name, in_bytes, np.dtype(np.uint8), tensor.n_bytes, raw_dtype=kind
    )


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
