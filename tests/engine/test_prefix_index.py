import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import prefix_index
from server.engine.detokenizer import Detokenizer
from server.engine.prefix_index import (
    ALIGN,
    LEAST_SHARED,
    MIN_AWAITED_ROWS,
    MIN_PREFILL_ROWS,
    chunk_rows,
    common_prefix_length,
    find,
    reusable_tokens,
    token_key,
)
from server.engine.sequence import Sequence
from server.engine.slots import Slot
from tests.factories import ByteTokenizer, make_request

tokens = st.lists(st.integers(0, 3), max_size=60)


@given(tokens, tokens, tokens)
def test_common_prefix_is_the_longest(shared, left, right):
    left, right = shared + left, shared + right
    length = common_prefix_length(left, right)
    assert left[:length] == right[:length]
    assert length >= len(shared)
    assert length == min(len(left), len(right)) or left[length] != right[length]


aligns = st.sampled_from([1, ALIGN])


@given(tokens, tokens, aligns)
def test_reuse_leaves_aligned_work(prompt, cached, align):
    keep = reusable_tokens(token_key(prompt), token_key(cached), partial_removal=True, align=align)
    assert keep % align == 0
    assert prompt[:keep] == cached[:keep]
    assert keep == 0 or len(prompt) - keep >= align
    common = common_prefix_length(prompt, cached)
    lost = min(common, len(prompt) - align) - keep
    assert lost < align if keep else lost < ALIGN, "no more than that is computed again"


def test_recurrent_memory_is_taken_whole_or_not_at_all():
    assert (
        reusable_tokens(token_key([1, 2, 3, 4]), token_key([1, 2, 3]), partial_removal=False) == 3
    )
    assert (
        reusable_tokens(token_key([1, 2, 9, 4]), token_key([1, 2, 3]), partial_removal=False) == 0
    )
    assert reusable_tokens(token_key([1, 2, 3]), token_key([1, 2, 3]), partial_removal=False) == 0


@given(st.integers(0, 100), st.integers(1, 300), st.integers(1, 200))
def test_chunks_are_aligned_and_never_stuck(start, length, budget):
    end = start + length
    rows = chunk_rows(start, end, budget)
    assert 0 <= rows <= min(budget, length)
    assert rows in (0, length) or (start + rows) % ALIGN == 0
    assert rows in (0, length) or length - rows >= ALIGN
    if budget >= MIN_PREFILL_ROWS:
        assert rows > 0


def running(prompt, computed, turn, **fields):
    sequence = Sequence(make_request(prompt, **fields), Detokenizer(ByteTokenizer.pieces, ()), 0.0)
    sequence.computed, sequence.turn = computed, turn
    return sequence


def slots_of(holders):
    """Slots that run or hold what is given: prompt, and computed tokens, or None where idle."""
    slots = []
    for index, (prompt, computed) in enumerate(holders):
        slot = Slot(index, key=token_key(prompt))
        if computed is not None:
            slot.sequence = running(prompt, min(computed, len(prompt)), 100 - index)
        slots.append(slot)
    return slots


similar = st.builds(
    lambda shared, own: [1] * shared + [2] * own,
    st.sampled_from([0, 8, 9, 16, 80, 90, 96, 200]),
    st.integers(0, 20),
)


@given(
    similar.filter(len),
    st.lists(st.tuples(similar.filter(len), st.none() | st.integers(0, 220)), max_size=6),
    st.sampled_from([0, 97, 1000]),
    aligns,
)
def test_nothing_longer_is_overlooked(prompt, holders, turn, align):
    slots = slots_of(holders)
    match = find(slots, running(prompt, 0, 0), turn=turn, align=align)
    here, later = {}, {}
    for slot in slots:
        reusable = reusable_tokens(token_key(prompt), slot.key, partial_removal=True, align=align)
        other = slot.sequence
        there = reusable if other is None else min(reusable, other.computed // align * align)
        here[slot.index] = there if there >= LEAST_SHARED else 0
        if other is not None and other.turn < turn:
            later[other] = reusable
    most = max(here.values(), default=0)
    assert match.cells == most
    assert match.source is None if most == 0 else here[match.source.index] == most
    longest = max(later.values(), default=0)
    if longest < most + MIN_AWAITED_ROWS:
        assert (match.awaited, match.leader) == (0, None)
    else:
        assert match.awaited == longest
        alike = [other for other in later if later[other] == longest]
        assert match.leader is min(alike, key=lambda other: other.turn)


asked = st.tuples(similar.filter(len), st.sampled_from(["", "a", "b"]), st.integers(0, 120))


@given(
    asked,
    st.lists(st.tuples(asked, st.none() | st.integers(0, 220)), max_size=6),
    st.booleans(),
)
def test_of_another_scope_nothing_is_shared_or_told_that_is_not_public(one, holders, partial):
    """What is found is what there would be if the others held nothing but what is public on both sides."""
    prompt, scope, public = one
    slots = slots_of([(held, computed) for (held, _, _), computed in holders])
    bare = slots_of([(held, computed) for (held, _, _), computed in holders])
    for ((held, other, bound), _), slot, cut in zip(holders, slots, bare, strict=True):
        slot.scope, slot.public = other, min(bound, len(held))
        if other != scope:
            both = min(public, slot.public)
            cut.key = token_key(held[:both]) if partial or len(held) <= both else b""
    sequence = running(prompt, 0, 0, cache_scope=scope, public_tokens=min(public, len(prompt)))
    plain = running(prompt, 0, 0)
    match = find(slots, sequence, turn=1000, partial_removal=partial)
    least = find(bare, plain, turn=1000, partial_removal=partial)
    assert (match.cells, match.awaited) == (least.cells, least.awaited)


@pytest.mark.parametrize("computed", [0, 1000])
def test_a_burst_of_one_system_prompt_compares_it_once_each(monkeypatch, computed):
    """Otherwise 256 prompts of 32,000 tokens that come together take seconds of the engine's thread."""
    compared = []

    def counted(left, right):
        compared.append(len(left))
        return common_prefix_length(left, right)

    slots = slots_of([([1] * 1000 + [number] * 20, computed) for number in range(2, 66)])
    monkeypatch.setattr(prefix_index, "common_prefix_length", counted)
    match = find(slots, running([1] * 1000 + [0] * 20, 0, 0), turn=1000)
    assert max(match.cells, match.awaited) == 1000
    assert len(compared) == 1
