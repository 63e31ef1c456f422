"""ADAPTER: tells a LoRA from a whole model, by its header or, before it is there, by its name."""

from __future__ import annotations

import re
from pathlib import Path

from server.catalog.adapters import adapter_problem
from server.catalog.address import parse_address
from server.catalog.gguf import read_header
from server.catalog.modelfile.syntax import Instruction, Source
from server.core.errors import ConfigError, ModelFileError

_QUANTIZED = re.compile(
    r"[-._](?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4)\.gguf(?:\?.*)?$", re.IGNORECASE
)
_LORA = re.compile(r"lora|adapter", re.IGNORECASE)


def check_adapter(source: Source, line: Instruction, located: str) -> str | None:
    """Return a warning, or None. `located`: a path, or an address that holds `://` or `:`.

    Raises `ConfigError` for an address that must not be asked, and when the file is there and is not a LoRA
    adapter.
    """
    try:
        parse_address(located)
    except ConfigError as error:
        raise source.fail(line.value_offset, error.message) from error
    path = Path(located)
    if "://" not in located and path.is_dir():
        message = (
            f"{path} is a directory. An adapter is one GGUF file; convert_lora_to_gguf.py of llama.cpp "
            "makes it from a PEFT directory."
        )
        raise source.fail(line.value_offset, message)
    if "://" not in located and path.is_file():
        _check_header(source, line, path)
        return None
    if _QUANTIZED.search(located) and not _LORA.search(located):
        return (
            f"{source.place(line.offset)}: ADAPTER {line.value} is named like the quantized weights of a "
            "whole model, not like a LoRA adapter. If it is a whole model, write FROM with it instead."
        )
    return None


def _check_header(source: Source, line: Instruction, path: Path) -> None:
    try:
        header = read_header(path)
    except ModelFileError as error:
        message = (
            f"{error.message} An adapter is a LoRA in GGUF form; convert_lora_to_gguf.py of llama.cpp makes "
            "it from a PEFT directory."
        )
        raise source.fail(line.value_offset, message) from error
    problem = adapter_problem(header, instead=f"use FROM {line.value} instead of ADAPTER")
    if problem is not None:
        raise source.fail(line.value_offset, problem)
