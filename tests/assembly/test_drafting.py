"""Draft models of served ones: who names them, what is refused, what they take and what llama.cpp allocates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.assembly.drafting import warn_of_draft
from server.assembly.engine import build_engine, llama_params
from server.assembly.grouping import grouped
from server.assembly.sizing import Sized, budget_of, sized
from server.assembly.wanted import Wanted, wanted
from server.catalog.plan import Memory, compare, describe, repacked_types
from server.core.clock import SystemClock
from server.core.errors import ConfigError, ModelFileError, OnegpuError
from server.llama.backend import LlamaBackend
from server.llama.loading import load_backend
from server.ops.machine import cpu_flags
from server.settings import Settings
from tests.llama.plan_models import PlanSpec, write_plan_model
from tests.models import ModelSpec, write_model

GIB = 1 << 30
PLENTY = Memory(cpu_available=2**40)
CARD = Memory(gpu_total=24 * GIB, cpu_available=64 * GIB)
KINDS = ["weights_cpu", "kv_cpu", "compute_cpu", "output_cpu"]
ROUNDING = 0.0102 * (1 << 20)
"""The log has two decimals of a MiB for each of at most two buffers."""
MAIN, SMALL = ModelSpec(layers=3), ModelSpec(layers=1, seed=1)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and one that may draft for it."""
    return write_model(tmp_path / "m.gguf", MAIN), write_model(tmp_path / "d.gguf", SMALL)


def names(fetch: Any = Path, **settings: Any) -> list[Wanted]:
    return wanted(Settings.model_validate(settings), fetch)


def contexts(memory: Memory = PLENTY, **settings: Any) -> list[Sized]:
    return sized(grouped(names(**settings), memory), memory)


def modelfile(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.Modelfile"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_agents_on_the_same_weights_have_the_first_models_draft_and_its_context(files, tmp_path):
    main, draft = files
    other = write_model(tmp_path / "o.gguf", ModelSpec(layers=2))
    agent = modelfile(tmp_path, "agent", f"FROM {main}\nSYSTEM hi")
    both, alone = contexts(
        model={"path": main, "draft": draft},
        models={"a": {"from": agent}, "b": {"from": str(main)}, "c": {"from": str(other)}},
    )
    assert [one.name for one in both.group.members] == ["m", "a", "b"]
    assert (both.group.model.draft, alone.group.model.draft) == (draft, None)
    assert alone.plan.draft is None
    assert llama_params(alone).draft is None


def test_a_modelfile_names_a_draft_and_so_does_its_child(files, tmp_path):
    main, draft = files
    modelfile(tmp_path, "base", f"FROM {main}\nDRAFT ./d.gguf")
    modelfile(tmp_path, "child", "FROM base\nSYSTEM hi")
    modelfile(tmp_path, "other", f"FROM base\nDRAFT {main}")
    found = names(model={"path": main}, modelfiles=tmp_path)
    assert {one.name: one.model.draft for one in found} == {
        "m": None,
        "base": draft,
        "child": draft,
        "other": main,
    }
    groups = [[one.name for one in group.members] for group in grouped(found, PLENTY)]
    assert groups == [["m"], ["base", "child"], ["other"]]


def test_the_command_line_and_an_entry_win_over_a_modelfile(files, tmp_path):
    main, draft = files
    path = modelfile(tmp_path, "x", f"FROM {main}\nDRAFT ./nope.gguf")
    (one,) = names(model={"path": path, "draft": draft})
    assert one.model.draft == draft
    (one,) = names(model={"path": path, "draft": None})
    assert one.model.draft is None
    _, entry = names(model={"path": main}, models={"x": {"from": path, "draft": draft}})
    assert entry.model.draft == draft


def test_a_draft_has_any_name_that_a_model_may_have(files):
    main, draft = files
    asked: list[str] = []

    def fetch(text: str) -> Path:
        asked.append(text)
        return draft if text == "qwen3:0.6b" else Path(text)

    (one,) = names(fetch, model={"path": main, "draft": "qwen3:0.6b"})
    assert one.model.draft == draft
    assert asked == [str(main), "qwen3:0.6b"]


@pytest.mark.parametrize(
    ("engine", "told"),
    [({"speculation": "off"}, "speculation: off"), ({"deterministic": True}, "deterministic")],
)
def test_a_modelfiles_draft_is_refused_where_nothing_is_drafted(files, tmp_path, engine, told):
    path = modelfile(tmp_path, "x", f"FROM {files[0]}\nDRAFT ./d.gguf")
    with pytest.raises(ConfigError, match=rf"^x: draft must be left out with engine\.{told}"):
        contexts(model={"path": path}, engine=engine)


def test_files_that_cannot_draft_are_told_before_anything_is_loaded(files, tmp_path):
    main, _ = files
    text = tmp_path / "t.gguf"
    text.write_bytes(b"Once upon a time" * 9)
    more = write_plan_model(tmp_path / "v.gguf", PlanSpec(fill=1000))
    kinds: list[tuple[Path, type[OnegpuError], str]] = [
        (tmp_path / "none.gguf", ModelFileError, "^m: .*none.gguf does not exist"),
        (text, ModelFileError, "t.gguf is not a GGUF"),
        (more, ConfigError, r"^m: .*v.gguf cannot draft for .*m.gguf: its vocabulary has"),
    ]
    for path, kind, told in kinds:
        with pytest.raises(kind, match=told):
            contexts(model={"path": main, "draft": path})


def test_what_is_loaded_is_what_was_planned(files):
    main, draft = files
    engine = {"slots": 3, "n_ctx": 600}
    (cpu,) = contexts(model={"path": main, "draft": draft}, engine=engine)
    (card,) = contexts(CARD, model={"path": main, "draft": draft}, engine=engine)
    for one, place in ((cpu, 0), (card, "all")):
        params = llama_params(one).draft
        assert params is not None
        assert one.plan.draft is not None
        assert (params.path, params.n_gpu_layers) == (draft, place)
        assert (params.layout, params.flash_attention) == (
            one.plan.draft.kv_layout,
            "on" if one.plan.draft.flash_attention else "off",
        )
    assert (cpu.plan.draft.kv_layout, card.plan.draft.kv_layout) == ("split", "unified")


def test_the_footprint_is_both_models(files):
    main, draft = files
    engine = {"slots": 3, "n_ctx": 600}
    for memory in (PLENTY, CARD):
        (plain,) = contexts(memory, model={"path": main}, engine=engine)
        (both,) = contexts(memory, model={"path": main, "draft": draft}, engine=engine)
        assert both.plan.draft is not None
        took = both.footprint.gpu - plain.footprint.gpu, both.footprint.cpu - plain.footprint.cpu
        shared = memory.cuda_context if memory.has_gpu else 0
        assert took == (both.plan.draft.total_gpu - shared, both.plan.draft.needed_cpu)
        assert budget_of(memory).holds(both.footprint)


def test_what_has_no_room_for_both_is_refused_with_what_has(files):
    main, draft = files
    few = {"slots": 3, "n_ctx": 2048}
    (plain,) = contexts(model={"path": main}, engine=few)
    (both,) = contexts(model={"path": main, "draft": draft}, engine=few)
    between = (plain.footprint.cpu + both.footprint.cpu) // 2
    tight = Memory(cpu_available=between)
    assert contexts(tight, model={"path": main}, engine=few)
    told = "^m: does not fit: 3 × 2048 tokens with f16 KV and the draft model need"
    with pytest.raises(ConfigError, match=told):
        contexts(tight, model={"path": main, "draft": draft}, engine=few)
    room = Memory(cpu_available=both.footprint.cpu)
    assert contexts(room, model={"path": main, "draft": draft}, engine=few)
    with pytest.raises(ConfigError, match=r"What fits:\n  onegpu serve .*m.gguf --draft .*d.gguf"):
        contexts(room, model={"path": main, "draft": draft}, engine={"slots": 64, "n_ctx": 8192})


def test_why_drafts_may_not_pay_is_logged(files, caplog):
    main, draft = files
    (good,) = contexts(model={"path": main, "draft": draft})
    warn_of_draft(good.group, good.shape, good.draft, good.plan)
    assert caplog.text == ""
    (same,) = contexts(model={"path": main, "draft": main})
    warn_of_draft(same.group, same.shape, same.draft, same.plan)
    assert "m: " in caplog.text
    assert "is not smaller than" in caplog.text
    caplog.clear()
    (card,) = contexts(CARD, model={"path": main, "draft": draft}, engine={"n_ctx": 4096})
    small = Memory(gpu_total=card.plan.total_gpu - (1 << 20), cpu_available=2**40, reserve=0)
    (aside,) = contexts(small, model={"path": main, "draft": draft}, engine={"n_ctx": 4096})
    warn_of_draft(aside.group, aside.shape, aside.draft, aside.plan)
    assert "d.gguf is in system memory, as the GPU has no room for it" in caplog.text


@pytest.mark.anyio
@pytest.mark.native
async def test_a_draft_that_memory_was_not_planned_for_is_not_loaded(files):
    main, draft = files
    (one,) = contexts(model={"path": main, "draft": draft}, engine={"n_ctx": 256})
    draft.unlink()
    write_model(draft, ModelSpec(layers=2))
    engine = build_engine(one, (), SystemClock())
    engine.start()
    with pytest.raises(ModelFileError, match=r"d\.gguf was replaced by a model of another shape"):
        await engine.wait_loaded()
    await engine.stop()


@pytest.mark.native
@pytest.mark.parametrize(
    "engine",
    [
        {"slots": 3, "n_ctx": 600},
        {"slots": 2, "n_ctx": 1000, "kv_type": "q8_0", "kv_layout": "unified"},
        {"slots": 4, "n_ctx": 200, "kv_cells": 300},
        {"slots": 1, "n_ctx": 2000, "kv_type": "q4_0", "flash_attention": "on"},
    ],
)
def test_both_take_what_was_planned(tmp_path, engine):
    main = write_plan_model(tmp_path / "m.gguf", PlanSpec(layers=4))
    draft = write_plan_model(tmp_path / "d.gguf", PlanSpec(layers=1, tied=True, kind="Q4_0"))
    memory = Memory(cpu_available=2**40, repacked=repacked_types(cpu_flags()))
    (one,) = contexts(
        memory, model={"path": main, "draft": draft}, engine={"warmup": False, **engine}
    )
    backend = load_backend(llama_params(one))(lambda _fraction: None)
    assert isinstance(backend, LlamaBackend)
    try:
        assert one.plan.draft is not None
        # The output buffer grows with the first call that has more outputs than there are slots.
        later = one.sizes.draft_rows * one.shape.n_vocab * 4
        main_plan = replace(one.plan, output_cpu=one.plan.output_cpu - later)
        for plan, allocated in (
            (main_plan, backend.allocated),
            (one.plan.draft, backend.draft_allocated),
        ):
            assert allocated is not None
            found = compare(plan, allocated)
            told = describe(found)
            assert [part.name for part in found] == KINDS, told
            for part in found:
                assert part.planned == pytest.approx(part.allocated, abs=ROUNDING), told
    finally:
        backend.shutdown()
