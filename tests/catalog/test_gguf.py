from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.catalog.gguf import check, read_header
from server.catalog.gguf_cursor import ArrayRef
from server.core.errors import ModelFileError
from tests.catalog.conftest import (
    ARRAY,
    SOUND,
    STRING,
    UINT32,
    entry,
    gguf,
    header,
    strings,
    tensor,
    text,
)
from tests.models import ModelSpec, vocabulary, write_model

FILE = gguf()


@pytest.mark.parametrize("version", [2, 3])
def test_sound_file_is_read(write, version):
    found = check(write(gguf(version=version)))
    assert found.version == version
    assert found.architecture == "qwen3"
    assert found.integer("block_count") == 2
    assert found.integer("nothing", 7) == 7
    assert found.array("tokenizer.ggml.tokens") == ["a", "b", "é"]
    assert found.array("tokenizer.ggml.token_type") == [1, 2, 3]
    assert found.array_length("tokenizer.ggml.tokens") == 3
    assert found.array("nothing") == []
    assert isinstance(found.metadata["tokenizer.ggml.tokens"], ArrayRef)
    assert [(t.name, t.dimensions, t.n_bytes) for t in found.tensors] == [
        ("token_embd.weight", (4, 3), 48),
        ("output_norm.weight", (4,), 16),
    ]
    assert found.tensor_bytes == 64
    assert found.data_offset % 32 == 0


def test_file_of_the_gguf_package_is_read(tmp_path):
    spec = ModelSpec()
    found = check(write_model(tmp_path / "real.gguf", spec))
    assert found.array("tokenizer.ggml.tokens") == vocabulary(spec).texts
    assert found.integer("embedding_length") == spec.embedding
    assert found.data_offset + found.tensor_bytes <= found.file_size


def without(*keys: str) -> list[bytes]:
    return [value for key, value in SOUND.items() if key not in keys]


def replaced(key: str, kind: int, value: bytes) -> list[bytes]:
    return [*without(key), entry(key, kind, value)]


LONG = struct.pack("<Q", 2**62)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"GG", "not a GGUF"),
        (b"GGUF", "not a sound GGUF"),
        (b"PK\x03\x04 and more", "ZIP archive"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"lmgg\x01\x00\x00\x00", "legacy GGML"),
        (b"tjgg\x03\x00\x00\x00", "legacy GGJT"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (struct.pack("<Q", 40) + b'{"__metadata__":{}}', "safetensors"),
        (b"just some text", "it starts with b'just'"),
        (gguf(version=1), "version 1"),
        (gguf(version=9), "version 9"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
        (gguf(n_tensors=2**60), "it claims"),
        (gguf(n_values=2**60), "it claims"),
        (gguf(n_values=100), "not a sound GGUF"),
        (FILE[:40], "it claims"),
        (FILE[:200], "not a sound GGUF"),
        (FILE[:-1], "truncated: 1 bytes"),
        (header(), "truncated: 80 bytes"),
        (gguf([*SOUND.values(), SOUND["qwen3.block_count"]]), "appears twice"),
        (gguf(replaced("x", 99, b"")), "value type 99"),
        (gguf(replaced("x", ARRAY, struct.pack("<IQ", ARRAY, 1))), "array of arrays"),
        (gguf(replaced("x", ARRAY, struct.pack("<I", UINT32) + LONG)), "the file ends"),
        (gguf(replaced("x", ARRAY, struct.pack("<I", STRING) + LONG)), "claims"),
        (gguf(replaced("x", ARRAY, struct.pack("<IQ", STRING, 3) + LONG)), "past the end"),
        (gguf(replaced("x", STRING, LONG)), "the file ends"),
        (gguf(replaced("general.alignment", UINT32, struct.pack("<I", 7))), "alignment is 7"),
        (gguf(replaced("general.alignment", UINT32, struct.pack("<I", 0))), "alignment is 0"),
        (gguf(tensors=[tensor("t", (4, 4, 4, 4, 4))]), "5 dimensions"),
        (gguf(tensors=[tensor("t", (4,), kind=4)]), "type 4"),
        (gguf(tensors=[tensor("t", (100,), kind=12)]), "blocks of 256"),
        (gguf(tensors=[tensor("t", (2**62, 2**62))]), "truncated"),
        (gguf(tensors=[tensor("t", (4,), offset=2**62)]), "truncated"),
        (gguf(tensors=[]), "no tensors"),
        (gguf(without("general.architecture")), "names no architecture"),
        (gguf(replaced("general.architecture", STRING, text("clip"))), "mmproj"),
        (gguf(replaced("general.architecture", STRING, text("bert"))), "embedding model"),
        (gguf(replaced("general.architecture", STRING, text("t5"))), "encoder-decoder"),
        (gguf(replaced("general.type", STRING, text("adapter"))), "of type 'adapter'"),
        (gguf(without("tokenizer.ggml.tokens")), "no tokenizer"),
        (gguf(without("tokenizer.ggml.model")), "no tokenizer"),
        (gguf(replaced("tokenizer.ggml.tokens", ARRAY, strings([]))), "no tokenizer"),
        (
            gguf(replaced("tokenizer.ggml.eos_token_id", UINT32, struct.pack("<I", 3))),
            "EOS token is 3",
        ),
    ],
)
def test_bad_file_is_refused_with_its_reason(write, data, message):
    with pytest.raises(ModelFileError) as caught:
        check(write(data))
    assert message in caught.value.message
    assert "model.gguf" in caught.value.message


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "missing.gguf", "does not exist"),
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/null"), "not a regular file"),
    ):
        with pytest.raises(ModelFileError, match=message):
            check(path)


def test_big_vocabulary_is_stepped_over(write):
    tokens = [f"token{i}" for i in range(150_000)]
    path = write(gguf(replaced("tokenizer.ggml.tokens", ARRAY, strings(tokens))))
    found = check(path)
    assert found.array_length("tokenizer.ggml.tokens") == 150_000
    # Nothing of the array is in memory until it is asked for.
    assert isinstance(found.metadata["tokenizer.ggml.tokens"], ArrayRef)
    assert found.array("tokenizer.ggml.tokens") == tokens


MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, len(FILE) - 1), st.integers(0, 255)),
        st.tuples(st.just("u64"), st.integers(0, len(FILE) - 8), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("cut"), st.integers(0, len(FILE)), st.just(0)),
        st.tuples(st.just("insert"), st.integers(0, len(FILE)), st.integers(1, 300)),
    ),
    max_size=5,
)


def mutate(mutations: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(FILE)
    for kind, position, value in mutations:
        if kind == "byte" and position < len(data):
            data[position] = value
        elif kind == "u64" and position + 8 <= len(data):
            struct.pack_into("<Q", data, position, value)
        elif kind == "cut":
            del data[position:]
        elif kind == "insert":
            data[position:position] = bytes(value)
    return bytes(data)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(MUTATIONS)
def test_mutated_files_are_read_or_refused(write, mutations):
    path = write(mutate(mutations))
    with contextlib.suppress(ModelFileError):
        found = check(path)
        for key in found.metadata:
            found.array(key)


def test_every_truncation_is_refused(write):
    for length in range(len(FILE)):
        with pytest.raises(ModelFileError):
            check(write(FILE[:length]))


def test_reading_a_header_needs_no_tokenizer(write):
    assert read_header(write(gguf(without("tokenizer.ggml.model")))).tensors
