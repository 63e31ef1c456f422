"""The engine of one context: what it refuses to load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from server.assembly.engine import build_engine, llama_params, scheduler_limits
from server.assembly.grouping import grouped
from server.assembly.sizing import sized
from server.assembly.wanted import wanted
from server.catalog.plan import Memory
from server.core.clock import SystemClock
from server.core.errors import ModelFileError
from server.engine.host_memory import HostBudget
from server.llama.arena import Arena
from server.settings import Settings
from tests.models import ModelSpec, write_model

pytestmark = [pytest.mark.anyio, pytest.mark.native]


@pytest.mark.parametrize(
    ("spec", "told"),
    [(ModelSpec(layers=4), "replaced by a model of another shape"), (None, "does not exist")],
)
async def test_a_file_that_memory_was_not_planned_for_is_not_loaded(
    tmp_path: Path, spec: ModelSpec | None, told: str
) -> None:
    path = write_model(tmp_path / "m.gguf", ModelSpec())
    settings = Settings.model_validate({"model": {"path": path}, "engine": {"n_ctx": 256}})
    memory = Memory(cpu_available=2**40)
    (one,) = sized(grouped(wanted(settings, Path), memory), memory)
    path.unlink()
    if spec is not None:
        shutil.move(write_model(tmp_path / "other.gguf", spec), path)
    engine = build_engine(one, (), SystemClock())
    engine.start()
    with pytest.raises(ModelFileError, match=told):
        await engine.wait_loaded()
    await engine.stop()
    # The same shape with other weights is what a user means by an update.
    write_model(path, ModelSpec(seed=5))
    engine = build_engine(one, (), SystemClock())
    engine.start()
    await engine.wait_loaded()
    await engine.stop()


async def test_a_load_touches_the_arena_and_an_end_gives_its_memory_back(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", ModelSpec())
    settings = Settings.model_validate({"model": {"path": path}, "engine": {"n_ctx": 256}})
    memory = Memory(cpu_available=2**40)
    (one,) = sized(grouped(wanted(settings, Path), memory), memory)
    arena = Arena(2**24)
    engine = build_engine(one, (), SystemClock(), host=HostBudget(2**24), arena=arena)
    engine.start()
    await engine.wait_loaded()
    assert 0 < arena.warm < 2**24
    await engine.stop()
    assert arena.warm == 0


@pytest.mark.parametrize(("kv_type", "align"), [("f16", 1), ("q8_0", 8)])
async def test_reuse_is_aligned_as_the_kv_type_promises(tmp_path: Path, kv_type: str, align: int):
    path = write_model(tmp_path / "m.gguf", ModelSpec())
    settings = Settings.model_validate(
        {"model": {"path": path}, "engine": {"n_ctx": 256, "kv_type": kv_type}}
    )
    memory = Memory(cpu_available=2**40)
    (one,) = sized(grouped(wanted(settings, Path), memory), memory)
    assert scheduler_limits(one).reuse_align == align


@pytest.mark.parametrize(
    ("engine", "layout", "flash"),
    [
        ({}, "split", "off"),
        ({"kv_type": "auto"}, "split", "off"),
        ({"kv_type": "q8_0"}, "split", "on"),
        ({"kv_cells": 1000}, "unified", "on"),
        ({"kv_layout": "unified"}, "unified", "on"),
        ({"flash_attention": "on"}, "split", "on"),
        ({"deterministic": True}, "split", "on"),
    ],
)
async def test_what_is_loaded_on_a_cpu_is_what_was_planned(tmp_path: Path, engine, layout, flash):
    path = write_model(tmp_path / "m.gguf", ModelSpec())
    settings = Settings.model_validate(
        {"model": {"path": path}, "engine": {"n_ctx": 256, **engine}}
    )
    memory = Memory(cpu_available=2**40)
    (one,) = sized(grouped(wanted(settings, Path), memory), memory)
    params = llama_params(one)
    assert (params.layout, params.flash_attention) == (layout, flash)
    assert (one.plan.kv_layout, one.plan.flash_attention) == (layout, flash == "on")


async def test_flash_attention_makes_room_for_a_second_model(tmp_path: Path):
    first, second = (write_model(tmp_path / f"{name}.gguf", ModelSpec()) for name in "ab")

    def planned(memory: Memory, flash: str = "auto"):
        engine = {"n_ctx": 256, "flash_attention": flash}
        document = {"model": {"path": first}, "models": {"b": {"from": str(second)}}}
        settings = Settings.model_validate(document | {"engine": engine})
        return sized(grouped(wanted(settings, Path), memory), memory)

    off, on = (planned(Memory(cpu_available=2**40), how)[0] for how in ("off", "on"))
    both = Memory(cpu_available=off.footprint.cpu + on.footprint.cpu)
    assert [one.plan.flash_attention for one in planned(both)] == [False, True]
    # Too little for both: they take turns, each as it is alone.
    turns = Memory(cpu_available=off.footprint.cpu)
    assert [one.plan.flash_attention for one in planned(turns)] == [False, False]
