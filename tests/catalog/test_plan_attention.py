"""What `auto` means for the KV layout and flash attention: by device, cells, KV type and model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.catalog.gguf import read_header
from server.catalog.plan import Memory, Wishes, choose, plan, read_shape, render, slot_table
from server.catalog.plan.planning import Planner
from tests.catalog.plan_headers import QWEN3_32B, SMALL, number, write_header

GIB = 1 << 30
CPU, CARD = Memory(), Memory(gpu_total=24 * GIB)
WINDOW = replace(
    SMALL, architecture="gemma3", extra=(number("gemma3.attention.sliding_window", 512),)
)
DISABLED_WINDOW = replace(
    SMALL, architecture="phi3", extra=(number("phi3.attention.sliding_window", 2047),)
)
UNKNOWN_WINDOW = replace(
    SMALL, architecture="granite", extra=(number("granite.attention.sliding_window", 512),)
)
BUILT_IN_WINDOW = replace(SMALL, architecture="llama4")
COMPRESSED = replace(
    SMALL, architecture="deepseek2", extra=(number("deepseek2.attention.key_length_mla", 64),)
)


@pytest.fixture
def shape_of(tmp_path):
    def read(spec):
        return read_shape(read_header(write_header(tmp_path / "m.gguf", spec)))

    return read


@pytest.mark.parametrize(
    ("memory", "wishes", "layout", "flash"),
    [
        (CPU, {}, "split", False),
        (CPU, {"n_gpu_layers": "all"}, "split", False),
        (CARD, {"n_gpu_layers": 0}, "split", False),
        (CARD, {"n_gpu_layers": 1}, "unified", True),
        (CARD, {}, "unified", True),
        (CARD, {"kv_layout": "split"}, "split", True),
        (CPU, {"slots": 2, "n_ctx": 512, "kv_cells": 1024}, "split", False),
        (CPU, {"slots": 2, "n_ctx": 512, "kv_cells": 1000}, "unified", True),
        (CPU, {"slots": 2, "n_ctx": 512, "kv_cells": 2048}, "unified", True),
        (CPU, {"kv_type": "f32"}, "split", False),
        (CPU, {"kv_type": "bf16"}, "split", False),
        (CPU, {"kv_type": "q8_0"}, "split", True),
        (CPU, {"kv_type": "q4_0"}, "split", True),
        (CPU, {"kv_layout": "unified"}, "unified", True),
        (CPU, {"kv_layout": "unified", "flash_attention": "off"}, "unified", False),
        (CPU, {"flash_attention": "on"}, "split", True),
        (CPU, {"flash_attention": "off"}, "split", False),
        (CARD, {"flash_attention": "off"}, "unified", False),
        (CPU, {"n_ubatch": 1}, "split", True),
        (CPU, {"n_ubatch": 1, "kv_type": "q8_0"}, "split", True),
        (CARD, {"n_ubatch": 1}, "split", True),
    ],
)
def test_what_auto_means(shape_of, memory, wishes, layout, flash):
    planned = plan(shape_of(SMALL), Wishes(**wishes), memory)
    assert (planned.kv_layout, planned.flash_attention) == (layout, flash)


@pytest.mark.parametrize(
    ("spec", "layout"),
    [
        (WINDOW, "unified"),
        (UNKNOWN_WINDOW, "unified"),
        (BUILT_IN_WINDOW, "unified"),
        (COMPRESSED, "unified"),
        (DISABLED_WINDOW, "split"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.architecture,
)
def test_a_model_whose_states_lack_cells_shares_them_in_one_pool(shape_of, spec, layout):
    shape = shape_of(spec)
    planned = plan(shape, Wishes(), CPU)
    assert (planned.kv_layout, planned.flash_attention) == (layout, layout == "unified")
    split = plan(shape, Wishes(kv_layout="split"), CPU)
    assert split.flash_attention == (layout == "unified"), "copies or not, windows keep it on"


def test_recurrent_memories_stay_in_one_pool(shape_of):
    shape = shape_of(SMALL)
    first, *others = shape.layers
    hybrid = replace(shape, layers=(replace(first, recurrent=True), *others))
    planned = plan(hybrid, Wishes(), CPU)
    assert (planned.kv_layout, planned.flash_attention) == ("unified", True)


def test_layers_of_several_widths_keep_cells_as_narrow_as_they_are(shape_of):
    shape = shape_of(SMALL)
    first, *others = shape.layers
    uneven = replace(shape, layers=(replace(first, n_head_kv=2 * first.n_head_kv), *others))
    planned = plan(uneven, Wishes(), CPU)
    assert (planned.kv_layout, planned.flash_attention) == ("unified", True)


def test_scores_that_do_not_fit_are_not_stored(shape_of):
    shape = shape_of(QWEN3_32B)
    wishes = Wishes(slots=4, n_ctx=8192, kv_type="f16")
    free, tight = (plan(shape, replace(wishes, flash_attention=how), CPU) for how in ("off", "on"))
    assert free.needed_cpu > tight.needed_cpu + GIB // 2
    between = Memory(cpu_available=(free.needed_cpu + tight.needed_cpu) // 2)
    best = choose(shape, wishes, between).best
    assert best == plan(shape, wishes, between)
    assert best is not None
    assert (best.kv_layout, best.flash_attention, best.fits) == ("split", True, True)
    refused = choose(shape, replace(wishes, flash_attention="off"), between)
    assert refused.best is None, "what is asked for stays so"
    little = Memory(cpu_available=tight.needed_cpu - 1)
    told = choose(shape, wishes, little)
    assert told.best is None
    assert f"need {tight.needed_cpu / GIB:.2f} GiB of system memory" in told.reason
    assert all(other.fits for other in told.alternatives)
    assert told.alternatives


def test_the_kv_type_that_is_chosen_decides(shape_of):
    shape = shape_of(QWEN3_32B)
    half = plan(shape, Wishes(slots=4, n_ctx=8192, kv_type="q8_0"), CPU)
    best = choose(
        shape, Wishes(slots=4, n_ctx=8192), Memory(cpu_available=half.needed_cpu + GIB)
    ).best
    assert best is not None
    assert (best.kv_type, best.kv_layout, best.flash_attention) == ("q8_0", "split", True)


def test_it_is_told_and_said_as_flags(shape_of):
    shape, wishes = shape_of(SMALL), Wishes()
    choice = choose(shape, wishes, CPU)
    assert choice.best is not None
    assert choice.reason.endswith("; split KV layout, without flash attention")
    assert choice.best.command("m").endswith(" --kv-layout split")
    asked = replace(wishes, kv_layout="unified")
    pooled = choose(shape, asked, CPU)
    assert pooled.best is not None
    assert pooled.best.command("m").endswith(" --kv-layout unified")
    assert pooled.reason.endswith("; unified KV layout, with flash attention")
    shown = render(shape, wishes, CPU, choice)
    assert "KV, 32768 cells of f16, split" in shown
    assert "compute, 512 rows, no flash attention" in shown
    on_card = choose(shape, wishes, CARD)
    assert "layout" not in on_card.reason
    shown = render(shape, wishes, CARD, on_card)
    assert "layout" not in shown
    assert "flash" not in shown
    assert slot_table(shape, wishes, CPU, choice.best)["q8_0"]["2048"] > 0


def test_nothing_is_left_open(shape_of):
    resolved = Planner(shape_of(SMALL), CPU).resolve(Wishes())
    assert "auto" not in (resolved.kv_layout, resolved.flash_attention)
