from hypothesis import given
from hypothesis import strategies as st

from server.engine.prefix_index import (
    ALIGN,
    MIN_PREFILL_ROWS,
    chunk_rows,
    common_prefix_length,
    reusable_tokens,
    token_key,
)

tokens = st.lists(st.integers(0, 3), max_size=60)


@given(tokens, tokens, tokens)
def test_common_prefix_is_the_longest(shared, left, right):
    left, right = shared + left, shared + right
    length = common_prefix_length(left, right)
    assert left[:length] == right[:length]
    assert length >= len(shared)
    assert length == min(len(left), len(right)) or left[length] != right[length]


@given(tokens, tokens)
def test_reuse_leaves_aligned_work(prompt, cached):
    keep = reusable_tokens(token_key(prompt), token_key(cached), partial_removal=True)
    assert keep % ALIGN == 0
    assert prompt[:keep] == cached[:keep]
    assert keep == 0 or len(prompt) - keep >= ALIGN


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
