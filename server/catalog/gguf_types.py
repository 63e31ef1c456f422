"""The numbers of the GGUF format: value types, tensor types, and the magic of what it gets mistaken for."""

from __future__ import annotations

import struct
from enum import IntEnum

MetadataValue = str | int | float | bool


class ValueType(IntEnum):
    """`gguf_type` (gguf.h)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALARS: dict[ValueType, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}

BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""`ggml_type` number → name, elements per block, bytes per block (ggml.c; the tests compare it with
llama.cpp's own)."""

FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive, perhaps a PyTorch checkpoint; look for the GGUF of this model"),
    (b"\x80\x02", "a Python pickle (an old PyTorch checkpoint); look for the GGUF of this model"),
    (b"\x80\x04", "a Python pickle (an old PyTorch checkpoint); look for the GGUF of this model"),
    (b"lmgg", "a legacy GGML file, which llama.cpp no longer reads"),
    (b"fmgg", "a legacy GGMF file, which llama.cpp no longer reads"),
    (b"tjgg", "a legacy GGJT file, which llama.cpp no longer reads"),
    (b"algg", "a legacy GGLA adapter, which llama.cpp no longer reads"),
    (b"version https://", "a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
    (b"<!DOCTYPE", "a web page; the download link answered with HTML"),
    (b"<!doctype", "a web page; the download link answered with HTML"),
    (b"<html", "a web page; the download link answered with HTML"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file; look for the GGUF of this model"),
)
"""First bytes → what it is."""
