"""A draft model in the plan: what both take, where each goes, and what gives way."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.catalog.drafts import check_draft, draft_warnings
from server.catalog.gguf import GgufHeader, read_header
from server.catalog.plan import (
    DraftWish,
    Memory,
    ModelShape,
    Plan,
    Wishes,
    choose,
    layer_plans,
    plan,
    read_shape,
    render,
    slot_table,
    verdict,
)
from server.catalog.plan.planning import Planner
from server.core.errors import ConfigError
from tests.catalog.conftest import STRING, entry, text
from tests.catalog.plan_headers import (
    QWEN3_32B,
    SMALL,
    HeaderSpec,
    encode,
    metadata,
    number,
    tensors,
    write_header,
)

GIB = 1 << 30
QWEN3_06B = HeaderSpec("qwen3", 28, 1024, 16, 8, 128, feed_forward=3072, tied=True)
CARD = Memory(gpu_total=24 * GIB, cpu_available=64 * GIB)
RAM = Memory(cpu_available=64 * GIB)


@pytest.fixture(scope="module")
def headers(tmp_path_factory) -> dict[str, GgufHeader]:
    folder = tmp_path_factory.mktemp("headers")
    named = {"32b": QWEN3_32B, "0.6b": QWEN3_06B, "small": SMALL}
    named["odd"] = replace(SMALL, head_size=80, heads=16)
    return {
        name: read_header(write_header(folder / f"{name}.gguf", spec))
        for name, spec in named.items()
    }


@pytest.fixture(scope="module")
def shapes(headers) -> dict[str, ModelShape]:
    return {name: read_shape(header) for name, header in headers.items()}


def drafted(shape: ModelShape, draft: ModelShape, memory: Memory, **wishes: object) -> Plan:
    wished = Wishes(draft=DraftWish(draft), **wishes)  # type: ignore[arg-type]
    best = choose(shape, wished, memory).best
    assert best is not None
    assert best.draft is not None
    return best


@pytest.mark.parametrize("memory", [CARD, RAM], ids=["card", "cpu"])
@pytest.mark.parametrize("kv_layout", ["auto", "unified", "split"])
def test_both_take_what_each_takes_alone(shapes, memory, kv_layout):
    wishes = Wishes(slots=2, n_ctx=3000, kv_type="f16", draft_rows=32, kv_layout=kv_layout)
    both = plan(shapes["32b"], replace(wishes, draft=DraftWish(shapes["0.6b"])), memory)
    main = plan(shapes["32b"], wishes, memory)
    small = plan(shapes["0.6b"], replace(wishes, draft_rows=0), memory)
    assert both.draft == small
    shared = memory.cuda_context if memory.has_gpu else 0
    assert both.total_gpu == main.total_gpu + small.total_gpu - shared
    assert both.total_cpu == main.total_cpu + small.total_cpu
    assert both.needed_cpu == main.needed_cpu + small.needed_cpu
    for each in ("weights", "kv", "compute"):
        for side in ("gpu", "cpu"):
            assert getattr(both, f"{each}_{side}") == getattr(main, f"{each}_{side}")
    assert small.output_cpu == 2 * shapes["0.6b"].n_vocab * 4
    assert (small.kv_gpu > 0) == memory.has_gpu
    assert replace(
        both, draft=None, total_gpu=0, total_cpu=0, reclaimable_cpu=0, fits=True
    ) == replace(main, total_gpu=0, total_cpu=0, reclaimable_cpu=0, fits=True)


def test_the_drafts_cache_is_quantized_where_the_models_is_and_blocks_allow(shapes):
    def kv_type(main: str, draft: str) -> str:
        both = plan(
            shapes["small"],
            Wishes(kv_type=main, n_ctx=512, draft=DraftWish(shapes[draft])),
            CARD,
        )
        assert both.draft is not None
        return both.draft.kv_type

    assert [kv_type(one, "small") for one in ("f16", "f32", "q8_0", "q4_0")] == [
        *("f16", "f16", "q8_0", "q8_0")
    ]
    assert kv_type("q8_0", "odd") == "f16"


def test_a_pool_of_fewer_cells_leaves_the_draft_its_own(shapes):
    wishes = Wishes(slots=4, n_ctx=1024, kv_cells=2048, kv_type="f16")
    both = plan(shapes["32b"], replace(wishes, draft=DraftWish(shapes["0.6b"])), CARD)
    assert both.draft is not None
    assert (both.kv_cells, both.draft.kv_cells) == (2048, 4096)


def test_auto_sizes_make_room_for_the_draft(shapes):
    alone = choose(shapes["32b"], Wishes(), CARD).best
    both = drafted(shapes["32b"], shapes["0.6b"], CARD)
    assert alone is not None
    assert both.draft is not None
    assert (alone.slots, alone.n_ctx, alone.kv_type) == (4, 8192, "q8_0")
    assert both.n_gpu_layers == alone.n_gpu_layers == 65
    assert both.draft.n_gpu_layers == 29
    assert (both.slots, both.n_ctx, both.kv_type) == (4, 8192, "q4_0")
    assert both.total_gpu <= CARD.gpu_limit


def test_no_layer_leaves_the_card_for_the_draft(shapes):
    wishes = {"slots": 4, "n_ctx": 8192, "kv_type": "q8_0"}
    both = drafted(shapes["32b"], shapes["0.6b"], CARD, **wishes)
    assert both.draft is not None
    assert (both.n_gpu_layers, both.draft.n_gpu_layers) == (65, 0)
    assert both.draft.total_gpu == 0
    assert both.total_gpu <= CARD.gpu_limit
    small = Memory(gpu_total=12 * GIB, cpu_available=64 * GIB)
    alone = choose(shapes["32b"], Wishes(), small).best
    partly = drafted(shapes["32b"], shapes["0.6b"], small)
    assert alone is not None
    assert 0 < partly.n_gpu_layers == alone.n_gpu_layers < 65
    # A number of layers that somebody gave leaves room on the card.
    given = drafted(shapes["32b"], shapes["0.6b"], small, n_gpu_layers=8, n_ctx=4096, slots=1)
    assert given.draft is not None
    assert (given.n_gpu_layers, given.draft.n_gpu_layers) == (8, 29)
    none = drafted(shapes["32b"], shapes["0.6b"], small, n_gpu_layers=0, n_ctx=4096, slots=1)
    assert none.draft is not None
    assert none.draft.n_gpu_layers == 0


def test_what_has_no_room_for_the_draft_says_so(shapes):
    wishes = Wishes(slots=2, n_ctx=4096, kv_type="f16")
    alone = plan(shapes["32b"], wishes, RAM)
    memory = Memory(cpu_available=alone.needed_cpu + GIB // 2)
    assert choose(shapes["32b"], wishes, memory).best is not None
    choice = choose(shapes["32b"], replace(wishes, draft=DraftWish(shapes["0.6b"])), memory)
    assert choice.best is None
    assert "2 × 4096 tokens with f16 KV and the draft model need" in choice.reason
    assert choice.alternatives
    assert all(one.draft is not None and one.fits for one in choice.alternatives)


@settings(deadline=None, max_examples=30)
@given(
    gib=st.floats(0.5, 40),
    ram=st.floats(0.5, 64),
    slots=st.sampled_from(["auto", 1, 3]),
    n_ctx=st.sampled_from(["auto", 700, 4096]),
    kv_type=st.sampled_from(["auto", "f16", "q4_0"]),
    layers=st.sampled_from(["auto", "all", 0, 20]),
    draft=st.sampled_from(["0.6b", "small"]),
)
def test_what_is_chosen_fits_with_the_draft(shapes, gib, ram, slots, n_ctx, kv_type, layers, draft):
    memory = Memory(gpu_total=int(gib * GIB), cpu_available=int(ram * GIB))
    wishes = Wishes(
        slots=slots,
        n_ctx=n_ctx,
        kv_type=kv_type,
        n_gpu_layers=layers,
        draft=DraftWish(shapes[draft]),
    )
    choice = choose(shapes["32b"], wishes, memory)
    for one in (choice.best, *choice.alternatives):
        if one is None:
            continue
        assert one.draft is not None
        assert (one.draft.slots, one.draft.n_ctx) == (one.slots, one.n_ctx)
        assert one.total_gpu <= memory.gpu_limit
        assert memory.cpu_available is not None
        assert one.needed_cpu <= memory.cpu_available
        assert one.draft.n_gpu_layers == 0 or one.n_gpu_layers > 0


def test_the_table_has_the_draft_in_lines_of_its_own(shapes):
    wishes = Wishes(draft=DraftWish(shapes["0.6b"]))
    choice = choose(shapes["32b"], wishes, CARD)
    shown = choice.best
    assert shown is not None
    assert shown.draft is not None
    told = render(shapes["32b"], wishes, CARD, choice)
    assert "Drafts by a test's model: qwen3, 28 layers" in told
    rows = [line.split() for line in told.splitlines()]
    gpu = [int(row[-2].replace(",", "")) for row in rows if row[:2] == ["draft", "model:"]]
    assert len(gpu) == 5
    first = rows.index(["MiB", "GPU", "CPU"]) + 1
    all_parts = [int(row[-2].replace(",", "")) for row in rows[first : first + 10]]
    (total,) = [int(row[1].replace(",", "")) for row in rows if row[:1] == ["total"]]
    assert total <= sum(all_parts) <= total + 10  # each is rounded up
    assert "onegpu serve m.gguf --draft d.gguf --slots" in verdict("m.gguf", choice, "d.gguf")
    assert "the draft model on the GPU" in choice.reason
    counted = slot_table(shapes["32b"], replace(wishes, kv_type="q8_0"), CARD, shown)["q8_0"]
    planner = Planner(shapes["32b"], CARD)
    for n_ctx, slots in counted.items():
        fixed = replace(wishes, kv_type="q8_0", n_ctx=int(n_ctx), n_gpu_layers="all")
        assert slots == 0 or planner.plan(replace(fixed, slots=slots)).fits
        assert not planner.plan(replace(fixed, slots=slots + 1)).fits


def test_the_table_of_what_fits_has_the_draft_where_it_is(shapes):
    wishes = Wishes(slots=4, n_ctx=8192, kv_type="q8_0", draft=DraftWish(shapes["0.6b"]))
    shown = choose(shapes["32b"], wishes, CARD).best
    assert shown is not None
    assert slot_table(shapes["32b"], wishes, CARD, shown) == {"q8_0": {"8192": 4}}
    everything = layer_plans(shapes["32b"], wishes, CARD, shown)[-1]
    assert everything == shown
    rows = render(shapes["32b"], wishes, CARD, choose(shapes["32b"], wishes, CARD))
    assert re.search(r"\nall .* fits\n", rows)


def changed(tmp_path, spec: HeaderSpec, *entries: bytes, **layers: str) -> GgufHeader:
    """Write a header with other entries, and tensors renamed."""
    keys = [one[8 : 8 + one[0]] for one in entries]
    kept = [one for one in metadata(spec) if one[8 : 8 + one[0]] not in keys]
    listed = [
        (next((n.replace(a, b) for a, b in layers.items() if a in n), n), d, k)
        for n, d, k in tensors(spec)
    ]
    made, size = encode([*kept, *entries], listed)
    path = tmp_path / "changed.gguf"
    path.write_bytes(made)
    with path.open("r+b") as file:
        file.truncate(size)
    return read_header(path)


def check(main: GgufHeader, draft: GgufHeader) -> None:
    check_draft(main, draft, (read_shape(main), read_shape(draft)))


def test_a_small_model_of_the_family_may_draft(tmp_path, headers):
    check(headers["32b"], headers["0.6b"])
    padded = replace(QWEN3_06B, vocabulary=QWEN3_32B.vocabulary + 128)
    check(headers["32b"], read_header(write_header(tmp_path / "p.gguf", padded)))


@pytest.mark.parametrize("more", [-129, 129])
def test_another_vocabulary_is_refused(tmp_path, headers, more):
    other = replace(QWEN3_06B, vocabulary=QWEN3_32B.vocabulary + more)
    header = read_header(write_header(tmp_path / "p.gguf", other))
    with pytest.raises(ConfigError, match=r"vocabulary has 15\d,\d+ tokens, not 151,936\. Choose"):
        check(headers["32b"], header)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("tokenizer.ggml.model", "llama", "its tokenizer is llama, not gpt2"),
        ("tokenizer.ggml.pre", "llama-bpe", "is llama-bpe, not qwen2"),
    ],
)
def test_another_tokenizer_is_refused(tmp_path, headers, key, value, told):
    header = changed(tmp_path, SMALL, entry(key, STRING, text(value)))
    with pytest.raises(ConfigError, match=told):
        check(headers["small"], header)


def test_states_that_cannot_forget_are_refused(tmp_path, headers):
    sizes = {"inner_size": 64, "state_size": 16, "group_count": 1, "conv_kernel": 4}
    keys = [number(f"qwen3.ssm.{key}", value) for key, value in sizes.items()]
    header = changed(tmp_path, SMALL, *keys, **{"blk.0.attn_k.": "blk.0.ssm_in."})
    with pytest.raises(ConfigError, match=r"back\. Choose a small model"):
        check(headers["small"], header)
    with pytest.raises(ConfigError, match=r"back\. Leave draft out"):
        check(header, headers["small"])


def test_drafts_that_cannot_pay_are_told(shapes):
    assert list(draft_warnings(shapes["32b"], shapes["0.6b"], 8192)) == []
    told = draft_warnings(shapes["0.6b"], shapes["0.6b"], 8192)
    assert "is not smaller than" in " ".join(told)
    (short,) = draft_warnings(shapes["32b"], shapes["0.6b"], 50_000)
    assert "was trained for 40,960 tokens" in short
