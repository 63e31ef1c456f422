"""Which profile a context is served with, and why another is not taken."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.assembly.engine import llama_params, scheduler_limits
from server.assembly.grouping import grouped
from server.assembly.sizing import Sized, sized
from server.assembly.tuning.applying import tuned
from server.assembly.tuning.profile import (
    HoldsFor,
    Profile,
    holds_for,
    profile_path,
    read_profile,
    write_profile,
)
from server.assembly.wanted import wanted
from server.catalog.plan import Memory
from server.settings import Settings
from tests.models import ModelSpec, write_model

MEMORY = Memory(cpu_available=2**40)


@pytest.fixture
def path(tmp_path) -> Path:
    return write_model(tmp_path / "m.gguf", ModelSpec())


def contexts(path: Path, memory: Memory = MEMORY, **engine: object) -> list[Sized]:
    document = {"model": {"path": path}, "engine": {"n_ctx": 512, **engine}}
    return sized(grouped(wanted(Settings.model_validate(document), Path), memory), memory)


def write(path: Path, folder: Path, settings: dict[str, Any], **other: str) -> Path:
    """Write a profile for the usual context; `other` changes what it holds for."""
    (one,) = contexts(path)
    here = holds_for(one, MEMORY)
    at = profile_path(folder, one, here)
    write_profile(at, Profile("m.gguf", replace(here, **other), settings))
    return at


def test_a_profile_is_served_with_and_said(path, tmp_path, caplog) -> None:
    at = write(path, tmp_path, {"engine.n_ubatch": 256, "model.extra_buffers": False})
    with caplog.at_level(logging.INFO):
        (one,), (applied,) = tuned(contexts(path), MEMORY, tmp_path)
    params = llama_params(one)
    assert (params.n_ubatch, params.extra_buffers) == (256, False)
    assert caplog.messages == [
        f"m is served as tuned for this machine: engine.n_ubatch 256, model.extra_buffers false ({at})"
    ]
    assert applied.settings == {"engine.n_ubatch": 256, "model.extra_buffers": False}


def test_rows_of_prompts_are_what_the_engine_keeps_to_unless_somebody_has_set_them(
    path, tmp_path
) -> None:
    write(path, tmp_path, {"engine.max_prefill_rows": 128, "engine.max_prefill_rows_decoding": 64})
    (one,), _ = tuned(contexts(path), MEMORY, tmp_path)
    limits = scheduler_limits(one)
    assert (limits.prefill_rows, limits.prefill_rows_decoding) == (128, 64)
    (one,), _ = tuned(contexts(path, max_prefill_rows_decoding=256), MEMORY, tmp_path)
    limits = scheduler_limits(one)
    assert (limits.prefill_rows, limits.prefill_rows_decoding) == (128, 256)


def test_what_the_configuration_sets_wins(path, tmp_path, caplog) -> None:
    write(path, tmp_path, {"engine.n_ubatch": 256, "engine.threads": 3})
    with caplog.at_level(logging.INFO):
        (one,), _ = tuned(contexts(path, n_ubatch=512), MEMORY, tmp_path)
    assert (llama_params(one).n_ubatch, llama_params(one).threads) == (512, 3)
    assert "the configuration itself sets engine.n_ubatch" in caplog.text


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"model": "0" * 16}, "it is of another model"),
        ({"machine": "a toaster"}, "it is for another machine (a toaster; here: "),
        ({"library": "llama-cpp-python 0.0.1"}, "it is for another version of llama.cpp"),
        ({"context": "2x64"}, "it is for other sizes (2x64; here: 4x512, 2048 cells, f16)"),
    ],
)
def test_a_profile_of_something_else_is_not_taken_and_told(
    path, tmp_path, caplog, other, told
) -> None:
    at = write(path, tmp_path, {"engine.n_ubatch": 256}, **other)
    (one,), applied = tuned(contexts(path), MEMORY, tmp_path)
    assert llama_params(one).n_ubatch == 512
    assert applied == []
    assert f"{at} is not taken for m: {told}" in caplog.text


def test_profiles_of_other_sizes_are_told_of(path, tmp_path, caplog) -> None:
    at = write(path, tmp_path, {"engine.n_ubatch": 256})
    with caplog.at_level(logging.INFO):
        (one,), _ = tuned(contexts(path, slots=2), MEMORY, tmp_path)
    assert llama_params(one).n_ubatch == 512
    assert caplog.messages == [f"{at} is not taken for m: other sizes"]


def test_a_model_that_was_replaced_has_no_profile(path, tmp_path) -> None:
    write(path, tmp_path, {"engine.n_ubatch": 256})
    write_model(path, ModelSpec(seed=9))
    _, applied = tuned(contexts(path), MEMORY, tmp_path)
    assert applied == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("settings: [", "it cannot be read"),
        ("name: m\n", "it cannot be read"),
        (None, "it sets what is not tuned: engine.slots"),
    ],
)
def test_a_damaged_profile_is_not_taken_and_told(path, tmp_path, caplog, text, told) -> None:
    at = write(path, tmp_path, {"engine.slots": 9})
    if text is not None:
        at.write_text(text, encoding="utf-8")
    (one,), applied = tuned(contexts(path), MEMORY, tmp_path)
    assert (one.sizes.slots, applied) == (4, [])
    assert told in caplog.text


def test_a_value_that_is_none_is_told(path, tmp_path, caplog) -> None:
    write(path, tmp_path, {"engine.threads": "many"})
    (_one,), applied = tuned(contexts(path), MEMORY, tmp_path)
    assert applied == []
    assert "is not taken for m" in caplog.text


def test_a_profile_for_which_there_is_no_room_is_not_taken(path, tmp_path, caplog) -> None:
    at = write(path, tmp_path, {"engine.n_ubatch": 2048})
    (usual,) = contexts(path)
    tight = Memory(cpu_available=usual.footprint.cpu + 2**16)
    (one,), applied = tuned(contexts(path, tight), tight, tmp_path)
    assert at.exists()
    assert (one.group.engine.n_ubatch, applied) == (512, [])
    assert "No profile is taken, for with them there is no room" in caplog.text


def test_a_profile_of_the_other_layout_is_taken_and_flash_attention_follows(path, tmp_path) -> None:
    (usual,) = contexts(path)
    assert (llama_params(usual).layout, llama_params(usual).flash_attention) == ("split", "off")
    write(path, tmp_path, {"engine.kv_layout": "unified"})
    (one,), _ = tuned(contexts(path), MEMORY, tmp_path)
    assert (llama_params(one).layout, llama_params(one).flash_attention) == ("unified", "on")


def test_people_can_read_it(path, tmp_path) -> None:
    at = write(path, tmp_path, {"engine.kv_layout": "split"})
    assert at.parent == tmp_path
    assert at.name.startswith("m-")
    assert at.name.endswith("-4x512-f16.yaml")
    text = at.read_text(encoding="utf-8")
    assert text.startswith("# Written by `onegpu tune`.")
    assert "settings:\n  engine.kv_layout: split\n" in text
    assert isinstance(read_profile(at).holds_for, HoldsFor)
