"""The plan's arithmetic: the layer rule, the KV cache, what fits, and what is chosen."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from server.catalog.gguf import read_header
from server.catalog.gguf_cursor import Cursor
from server.catalog.plan import (
    Allocated,
    Memory,
    RopeWish,
    Wishes,
    check_context,
    choose,
    compare,
    describe,
    layer_plans,
    plan,
    read_shape,
    render,
    repacked_types,
    slot_table,
    verdict,
)
from server.catalog.plan.planning import Planner
from server.core.errors import ConfigError, ModelFileError
from tests.catalog.conftest import UINT32, entry
from tests.catalog.plan_headers import (
    QWEN3_30B_A3B,
    QWEN3_32B,
    SMALL,
    encode,
    metadata,
    number,
    tensors,
    write_header,
)

GIB, MIB = 1 << 30, 1 << 20
CARD = Memory(gpu_total=24 * GIB)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headers")
    named = {"32b": QWEN3_32B, "30b-a3b": QWEN3_30B_A3B, "small": SMALL}
    named["tied"] = replace(SMALL, tied=True)
    return {
        name: read_shape(read_header(write_header(folder / f"{name}.gguf", spec)))
        for name, spec in named.items()
    }


def bytes_of(shape, *prefixes: str) -> int:
    return sum(w.n_bytes for w in shape.weights if w.name.startswith(prefixes))


@pytest.mark.parametrize("layers", [1, 2, 17, 64, 65, 66, "all"])
def test_weights_follow_the_layer_rule(shapes, layers):
    shape = shapes["32b"]
    planned = plan(shape, Wishes(n_gpu_layers=layers), CARD)
    count = 65 if layers == "all" else min(layers, 65)
    # The head is layer 64; the last count - 1 blocks come with it. All sizes divide by 128 here.
    blocks = tuple(f"blk.{i}." for i in range(65 - count, 64))
    assert planned.weights_gpu == bytes_of(shape, *blocks, "output.weight", "output_norm.weight")
    assert planned.n_gpu_layers == count
    kept = [w for w in shape.weights if not w.name.startswith((*blocks, "output"))]
    first = min(w.offset for w in kept)
    assert planned.weights_cpu == max(w.offset + w.n_bytes for w in kept) - first
    assert planned.kv_gpu == 32768 * 4096 * (count - 1)
    assert planned.kv_cpu == 32768 * 4096 * (65 - count)


def test_without_layers_the_card_is_not_used(shapes):
    planned = plan(shapes["32b"], Wishes(n_gpu_layers=0), CARD)
    assert planned.weights_gpu == planned.kv_gpu == planned.compute_gpu == 0


def test_tied_embeddings_get_a_second_copy_on_the_gpu(shapes):
    tied, untied = shapes["tied"], shapes["small"]
    planned = plan(tied, Wishes(n_gpu_layers="all"), CARD)
    embedding = bytes_of(tied, "token_embd")
    plain = plan(untied, Wishes(n_gpu_layers="all"), CARD)
    # One matrix of 256 columns: half of the 512 to which CUDA pads the last row, in Q4_K and Q6_K.
    assert planned.weights_gpu - plain.weights_gpu == pytest.approx(
        embedding - bytes_of(untied, "output.weight"), abs=256
    )
    assert planned.weights_cpu == embedding


def test_experts_are_kept_aside_layer_by_layer(shapes):
    shape = shapes["30b-a3b"]
    whole = plan(shape, Wishes(n_gpu_layers="all"), CARD)
    aside = plan(shape, Wishes(n_gpu_layers="all", n_cpu_moe=10), CARD)
    experts = sum(w.n_bytes for w in shape.weights if w.is_experts and (w.layer or 0) < 10)
    # CUDA pads the last row of the down projections, 768 wide, to a multiple of 512.
    assert whole.weights_gpu - aside.weights_gpu == pytest.approx(experts, abs=10 * 512)
    assert aside.weights_cpu > experts
    assert aside.kv_gpu == whole.kv_gpu


@pytest.mark.parametrize(
    ("kv_type", "per_token"),
    [("f32", 512), ("f16", 256), ("q8_0", 136), ("q5_1", 96), ("q4_0", 72)],
)
def test_kv_bytes_of_qwen3_32b(shapes, kv_type, per_token):
    wishes = Wishes(slots=3, n_ctx=1000, kv_type=kv_type, n_gpu_layers="all")
    planned = plan(shapes["32b"], wishes, CARD)
    assert planned.kv_per_token == per_token * 1024
    assert planned.kv_gpu == 3072 * planned.kv_per_token
    split = plan(shapes["32b"], replace(wishes, kv_layout="split"), CARD)
    assert split.kv_gpu == 3 * 1024 * planned.kv_per_token


def test_pages_that_are_read_once_need_not_fit(shapes):
    """A repacked model runs where its weights fit once: the file's own pages are given back."""
    shape = shapes["32b"]
    wishes = Wishes(n_ctx=4096, flash_attention="on")
    packed = plan(shape, wishes, Memory())
    once = sum(w.n_bytes for w in shape.weights)
    assert packed.total_cpu - packed.needed_cpu == packed.reclaimable_cpu
    assert packed.weights_cpu - packed.reclaimable_cpu == pytest.approx(once, rel=0.001)
    enough = Memory(cpu_available=packed.needed_cpu)
    assert packed.needed_cpu < packed.total_cpu
    assert plan(shape, wishes, enough).fits
    assert not plan(shape, replace(wishes, mlock=True), enough).fits
    less = Memory(cpu_available=packed.needed_cpu - 1)
    assert not plan(shape, wishes, less).fits
    read = plan(shape, replace(wishes, mmap=False), Memory())
    assert read.reclaimable_cpu == 0
    plain = plan(shape, wishes, Memory(repacked=frozenset()))
    assert plain.reclaimable_cpu < MIB


def test_cpu_counts_repacked_weights_beside_the_mapped_file(shapes):
    shape = shapes["small"]
    plain = plan(shape, Wishes(), Memory(repacked=frozenset()))
    packed = plan(shape, Wishes(), Memory(repacked=repacked_types(frozenset({"avx2"}))))
    matrices = sum(
        w.n_bytes for w in shape.weights if w.type_name == "Q4_K" and w.name.startswith("blk.")
    )
    assert packed.weights_cpu >= plain.weights_cpu + matrices - MIB
    assert packed.weights_cpu > plain.weights_cpu


def test_a_cpu_that_is_not_known_is_taken_to_repack():
    assert {"Q4_K", "Q8_0", "Q6_K"} <= Memory().repacked
    assert repacked_types(frozenset()) == frozenset()
    assert "Q2_K" in repacked_types(frozenset({"avx2", "avx512f"}))
    assert "Q8_0" in repacked_types(frozenset({"asimd", "asimddp"}))


def test_the_24_gib_table_of_qwen3_32b(shapes):
    shape = shapes["32b"]
    best = choose(shape, Wishes(), CARD).best
    assert best is not None
    assert (best.n_gpu_layers, best.slots, best.n_ctx, best.kv_type) == (65, 4, 8192, "q8_0")
    table = slot_table(shape, Wishes(), CARD, best)
    assert table["f16"] == {"2048": 9, "4096": 4, "8192": 2, "16384": 1, "32768": 0}
    assert table["q8_0"]["8192"] == 4
    assert table["q4_0"]["8192"] == 8


def test_what_is_chosen_fits_and_one_slot_more_does_not(shapes):
    shape = shapes["32b"]
    wishes = Wishes(n_ctx=8192, kv_type="q8_0", n_gpu_layers="all")
    best = choose(shape, wishes, CARD).best
    assert best is not None
    assert best.fits
    assert best.total_gpu <= CARD.gpu_limit
    assert not plan(shape, replace(wishes, slots=best.slots + 1), CARD).fits


def test_a_wish_with_a_value_is_never_changed(shapes):
    wishes = Wishes(slots=2, n_ctx=4096, kv_type="f16")
    best = choose(shapes["32b"], wishes, Memory(gpu_total=16 * GIB)).best
    assert best is not None
    assert (best.slots, best.n_ctx, best.kv_type) == (2, 4096, "f16")
    assert 0 < best.n_gpu_layers < 65


def test_the_order_of_giving_way(shapes):
    shape = shapes["32b"]

    def chosen(gib: float):
        best = choose(shape, Wishes(), Memory(gpu_total=int(gib * GIB))).best
        assert best is not None
        return best

    rich, enough, tight, small = chosen(80), chosen(24), chosen(21), chosen(12)
    assert (rich.kv_type, rich.slots, rich.n_ctx) == ("f16", 4, 32768)
    assert (enough.kv_type, enough.slots, enough.n_ctx) == ("q8_0", 4, 8192)
    assert tight.n_gpu_layers == 65
    assert tight.slots * tight.n_ctx < 4 * 8192
    assert 0 < small.n_gpu_layers < 65
    assert (small.slots, small.n_ctx) == (4, 8192)


def test_mixtures_keep_experts_aside_before_layers(shapes):
    choice = choose(shapes["30b-a3b"], Wishes(), Memory(gpu_total=12 * GIB))
    assert choice.best is not None
    assert choice.best.n_gpu_layers == 49
    assert 0 < choice.best.n_cpu_moe < 48
    assert "experts" in choice.reason


def test_nothing_fits_says_what_would(shapes):
    wishes = Wishes(slots=8, n_ctx=32768, kv_type="f16", n_gpu_layers="all")
    choice = choose(shapes["32b"], wishes, CARD)
    assert choice.best is None
    assert "need" in choice.reason
    assert "23.50 GiB" in choice.reason
    assert choice.alternatives
    assert all(other.fits for other in choice.alternatives)
    told = verdict("m.gguf", choice)
    assert "What would fit" in told
    assert "onegpu serve m.gguf --slots 8" in told


def test_nothing_fits_at_all(shapes):
    choice = choose(shapes["32b"], Wishes(), Memory(gpu_total=GIB, cpu_available=GIB))
    assert choice.best is None
    assert choice.alternatives == []
    assert "smaller quantization" in verdict("m.gguf", choice)


def test_system_memory_is_a_limit_too(shapes):
    short = Memory(gpu_total=16 * GIB, cpu_available=2 * GIB)
    assert choose(shapes["32b"], Wishes(), short).best is None
    assert choose(shapes["32b"], Wishes(), replace(short, cpu_available=32 * GIB)).best is not None


def test_no_card_plans_for_system_memory(shapes):
    memory = Memory(cpu_available=64 * GIB, repacked=frozenset({"Q4_K"}))
    choice = choose(shapes["32b"], Wishes(), memory)
    assert choice.best is not None
    assert choice.best.total_gpu == choice.best.n_gpu_layers == 0
    assert "no GPU" in choice.reason


def test_free_memory_counts_not_the_cards_size(shapes):
    busy = replace(CARD, gpu_free=21 * GIB)
    best = choose(shapes["32b"], Wishes(), busy).best
    assert best is not None
    assert best.total_gpu <= 21 * GIB - busy.reserve


def test_compute_grows_with_the_rows_and_the_depth(shapes):
    shape = shapes["32b"]
    small = plan(shape, Wishes(n_ubatch=64, n_gpu_layers="all"), CARD).compute_gpu
    wide = plan(shape, Wishes(n_ubatch=512, n_gpu_layers="all"), CARD).compute_gpu
    deep = plan(shape, Wishes(n_ctx=32768, n_gpu_layers="all"), CARD).compute_gpu
    slow = plan(shape, Wishes(flash_attention="off", n_gpu_layers="all"), CARD).compute_gpu
    assert small < wide < deep < slow


def test_layers_on_the_cpu_lend_their_weights_to_the_card(shapes):
    # Long prompts are computed on the GPU all the same: it needs room for the largest such matrix.
    shape = shapes["32b"]
    half = plan(shape, Wishes(n_gpu_layers=32), CARD)
    whole = plan(shape, Wishes(n_gpu_layers="all"), CARD)
    largest = max(w.n_bytes for w in shape.weights if w.layer == 0)
    assert half.compute_gpu >= largest + whole.compute_gpu // 2


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"kv_cells": 100, "n_ctx": 200}, "at least one full context"),
        ({"kv_cells": 300, "n_ctx": 200, "kv_layout": "split"}, "split layout"),
        ({"kv_type": "q8_0", "flash_attention": "off"}, "needs flash attention"),
        ({"kv_type": "int4"}, "must be auto or one of"),
        ({"slots": 0}, "slots must be auto or 1 to 256"),
        ({"n_ctx": 1 << 30}, "n_ctx must be"),
    ],
)
def test_wishes_that_contradict_are_refused(shapes, wishes, message):
    with pytest.raises(ConfigError, match=message):
        plan(shapes["small"], Wishes(**wishes), CARD)


def test_a_context_within_training_is_no_question(shapes):
    check_context(shapes["32b"], 40960)


def test_a_longer_context_is_refused_and_told_how(shapes):
    with pytest.raises(ConfigError) as caught:
        check_context(shapes["32b"], 131072)
    assert "40960 tokens that the model was trained for" in caught.value.message
    told = "rope_scaling: {type: yarn, freq_scale: 0.25, orig_ctx: 40960}"
    assert told in caught.value.message
    check_context(shapes["32b"], 131072, RopeWish("yarn", None, 0.25, 40960))


def test_scaling_that_does_not_reach_is_refused(shapes):
    with pytest.raises(ConfigError, match=r"40960 tokens / freq_scale 0.5 = 81920.*to 0.25"):
        check_context(shapes["32b"], 131072, RopeWish("yarn", None, 0.5))
    with pytest.raises(ConfigError, match="trained for"):
        check_context(shapes["32b"], 131072, RopeWish("none", 5e6, None))
    check_context(shapes["32b"], 131072, RopeWish(freq_base=5e6))


LIES = {
    "more layers": ([number("qwen3.block_count", 80)], "claims 80 layers .* holds tensors of 2"),
    "fewer layers": ([number("qwen3.block_count", 1)], "claims 1 layers"),
    "no layers": ([number("qwen3.block_count", 0)], "block_count, which must be 1 to 512"),
    "huge": ([number("qwen3.block_count", 2**31)], "which must be 1 to 512"),
    "embedding": ([number("qwen3.embedding_length", 512)], "token embedding has the shape"),
    "heads": ([number("qwen3.attention.head_count_kv", 7)], "attn_k of layer 0 makes 128"),
    "many heads": ([number("qwen3.attention.head_count", 2**20)], "1048576 attention heads"),
}


@pytest.mark.parametrize(("entries", "message"), LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused(tmp_path, entries, message):
    keys = [entry_of[8 : 8 + entry_of[0]] for entry_of in entries]
    honest = [one for one in metadata(SMALL) if one[8 : 8 + one[0]] not in keys]
    made, size = encode([*honest, *entries], list(tensors(SMALL)))
    path = tmp_path / "m.gguf"
    path.write_bytes(made + bytes(size - len(made)))
    with pytest.raises(ModelFileError, match=message):
        read_shape(read_header(path))


@pytest.mark.parametrize("card", [None, 8, 16, 24])
@pytest.mark.parametrize("ram", [None, 1, 30])
def test_a_plan_that_fits_is_the_same_plan(shapes, card, ram):
    memory = Memory(gpu_total=card and card * GIB, cpu_available=ram and ram * GIB)
    planner = Planner(shapes["32b"], memory)
    for layers, kv_type, mlock in itertools.product(("all", 20), ("f16", "q4_0"), (False, True)):
        wishes = Wishes(n_gpu_layers=layers, kv_type=kv_type, mlock=mlock)
        planned = planner.plan(wishes)
        assert planner.fitting(wishes) == (planned if planned.fits else None)


def test_weights_that_alone_exceed_the_card_need_no_look_at_the_graph(shapes, monkeypatch):
    def looked(*_):
        raise AssertionError("the graph takes most of the time")

    monkeypatch.setattr("server.catalog.plan.planning.compute_bytes", looked)
    for memory in (Memory(gpu_total=16 * GIB), Memory(cpu_available=4 * GIB)):
        assert Planner(shapes["32b"], memory).fitting(Wishes(n_gpu_layers="all")) is None


def test_a_missing_key_is_named(tmp_path):
    honest = [one for one in metadata(SMALL) if b"context_length" not in one[:40]]
    made, size = encode(honest, list(tensors(SMALL)))
    path = tmp_path / "m.gguf"
    path.write_bytes(made + bytes(size - len(made)))
    with pytest.raises(ModelFileError, match=r"says nothing about qwen3\.context_length"):
        read_shape(read_header(path))
    assert entry("a", UINT32, b"1234")[:8] == b"\x01" + bytes(7)


def test_a_large_vocabulary_is_stepped_over_not_decoded(tmp_path, monkeypatch):
    path = write_header(tmp_path / "m.gguf", QWEN3_32B)
    decoded = []
    real = Cursor.raw_text

    def count(self, what):
        text = real(self, what)
        decoded.append(len(text))
        return text

    monkeypatch.setattr(Cursor, "raw_text", count)
    shape = read_shape(read_header(path))
    assert shape.n_vocab == 151936
    # Keys, a few values and the tensors' names: none of 300,000 strings.
    assert len(decoded) < len(shape.weights) + 50
    assert sum(decoded) < 64 * 1024


def test_compare_names_what_went_over(shapes):
    planned = plan(shapes["small"], Wishes(n_gpu_layers="all"), CARD)
    fine = compare(planned, Allocated(kv_gpu=planned.kv_gpu, weights_gpu=planned.weights_gpu))
    assert not any(pair.over for pair in fine)
    over = compare(planned, Allocated(kv_gpu=planned.kv_gpu + MIB))
    assert [pair.name for pair in over if pair.over] == ["kv_gpu"]
    assert "OVER" in describe(over)
    assert "OVER" not in describe(fine)


def with_tensors(tmp_path, spec, changed, *extra: bytes):
    """Make a shape whose blocks hold other tensors than the spec's."""
    listed = [
        each for name, dimensions, kind in tensors(spec) for each in changed(name, dimensions, kind)
    ]
    made, size = encode([*metadata(spec), *extra], listed)
    path = tmp_path / "other.gguf"
    path.write_bytes(made)
    with path.open("r+b") as file:
        file.truncate(size)
    return read_shape(read_header(path))


def test_layers_with_parts_unknown_here_are_estimated_above_the_known(tmp_path, shapes):
    def compressed(name, dimensions, kind):
        if name.endswith("attn_k.weight"):
            return [(name.replace("attn_k", "attn_kv_a_mqa"), dimensions, kind)]
        return [] if name.endswith("attn_v.weight") else [(name, dimensions, kind)]

    shape = with_tensors(tmp_path, SMALL, compressed)
    strange = plan(shape, Wishes(n_gpu_layers="all"), CARD)
    known = plan(shapes["small"], Wishes(n_gpu_layers="all"), CARD)
    assert strange.compute_gpu > known.compute_gpu
    assert strange.estimated
    assert not known.estimated


def test_recurrent_layers_keep_a_state_for_each_slot_and_no_cells(tmp_path, shapes):
    def recurrent(name, dimensions, kind):
        if not name.startswith("blk.0.attn_") or name == "blk.0.attn_norm.weight":
            return [(name, dimensions, kind)]
        return [("blk.0.ssm_in.weight", (256, 64), "Q8_0")] if "attn_q.w" in name else []

    sizes = {"inner_size": 64, "state_size": 16, "group_count": 1, "conv_kernel": 4}
    keys = [number(f"qwen3.ssm.{key}", value) for key, value in sizes.items()]
    shape = with_tensors(tmp_path, SMALL, recurrent, *keys)
    wishes = Wishes(slots=3, n_ctx=512, n_gpu_layers="all")
    planned, plain = plan(shape, wishes, CARD), plan(shapes["small"], wishes, CARD)
    state = 4 * (3 * (64 + 2 * 16) + 16 * 64)
    assert planned.kv_per_token == plain.kv_per_token // 2
    assert planned.kv_gpu == plain.kv_gpu // 2 + -(-3 * state // 128) * 128


def test_an_architecture_that_is_not_held_against_llama_cpp_says_so(tmp_path):
    shape = read_shape(
        read_header(write_header(tmp_path / "g.gguf", replace(SMALL, architecture="glm4")))
    )
    choice = choose(shape, Wishes(), CARD)
    assert choice.best is not None
    assert choice.best.estimated
    assert "glm4 are an estimate" in render(shape, Wishes(), CARD, choice)


def test_every_layer_is_planned_for_programs(shapes):
    shape = shapes["32b"]
    shown = plan(shape, Wishes(n_gpu_layers="all", kv_type="q8_0"), CARD)
    plans = layer_plans(shape, Wishes(), CARD, shown)
    assert [each.n_gpu_layers for each in plans] == list(range(66))
    sizes = [each.weights_gpu for each in plans]
    assert sizes == sorted(sizes)
    assert plans[-1] == shown


@pytest.mark.parametrize("name", ["32b", "30b-a3b", "small", "tied"])
@pytest.mark.parametrize("memory", [CARD, Memory(cpu_available=64 * GIB), Memory(gpu_total=GIB)])
def test_the_table_is_aligned_and_complete(shapes, name, memory):
    shape = shapes[name]
    wishes = Wishes()
    table = render(shape, wishes, memory, choose(shape, wishes, memory))
    assert "slots that fit at n_ctx" in table
    assert "KiB per token" in table
    assert max(map(len, table.splitlines())) <= 110
    fits = [line for line in table.splitlines() if line.startswith(("f16 KV", "q8_0 KV"))]
    assert len({len(line) for line in fits}) == 1
