import pytest

from server.engine.detokenizer import Detokenizer
from server.engine.plan import Copy, Truncation
from server.engine.sequence import Sequence
from server.engine.slots import SlotPool
from tests.factories import ByteTokenizer, make_request


def sequence(prompt="x" * 16, max_tokens=8, **fields):
    request = make_request(prompt, max_tokens, **fields)
    return Sequence(request, Detokenizer(ByteTokenizer.pieces), now=0.0)


def occupy(pool, seq):
    found = pool.acquire(seq)
    assert found is not None
    return found.slot, found.keep, found.edits


def finish(pool, slot, seq):
    seq.computed = len(seq.tokens)
    pool.release(slot)
    pool.check_integrity()


def test_a_full_pool_has_no_slot():
    pool = SlotPool(slots=1, kv_cells=64)
    occupy(pool, sequence(request_id="a"))
    assert pool.acquire(sequence()) is None
    assert repr(pool) == "<SlotPool 24+0/64 cells [a]>"


def test_cells_are_reserved_for_prompt_and_output():
    pool = SlotPool(slots=4, kv_cells=64)
    occupy(pool, sequence("x" * 32, 16))
    assert pool.acquire(sequence("x" * 10, 7)) is None
    occupy(pool, sequence("x" * 10, 6))
    assert pool.reserved_cells == 64
    pool.check_integrity()


def test_the_longest_common_prefix_wins_then_the_least_recently_used():
    pool = SlotPool(slots=3, kv_cells=300)
    first, second = sequence("a" * 32), sequence("a" * 16 + "b" * 16)
    slot_first, slot_second = occupy(pool, first)[0], occupy(pool, second)[0]
    finish(pool, slot_first, first)
    finish(pool, slot_second, second)
    assert repr(pool) == "<SlotPool 0+64/300 cells [32 cached, 32 cached, -]>"
    slot, keep, _ = occupy(pool, sequence("a" * 16 + "b" * 24))
    assert (slot.index, keep) == (slot_second.index, 32)
    slot, keep, _ = occupy(pool, sequence("c" * 16))
    assert (slot.index, keep) == (2, 0), "never used comes first"


def test_idle_prefixes_make_room_least_recently_used_first():
    pool = SlotPool(slots=3, kv_cells=100)
    sequences = [sequence(letter * 32, 1) for letter in "abc"]
    slots = [occupy(pool, each)[0] for each in sequences]
    for index in (1, 0, 2):
        finish(pool, slots[index], sequences[index])
    slot, keep, evicted = occupy(pool, sequence("c" * 40, 10))
    assert (slot.index, keep) == (2, 32)
    # 50 + 32 + 32 are 14 too many: the end of the one used longest ago goes, down to a multiple of 8.
    assert evicted == [Truncation(1, 16)]
    pool.check_integrity()


def test_no_reuse_when_the_request_forbids_it():
    pool = SlotPool(slots=1, kv_cells=100)
    first = sequence("a" * 32)
    finish(pool, occupy(pool, first)[0], first)
    assert occupy(pool, sequence("a" * 40, reuse_prefix=False))[1] == 0


def test_prefixes_are_reused_within_a_scope_only():
    pool = SlotPool(slots=2, kv_cells=300)
    mine, shared = sequence("a" * 48, cache_scope="me"), sequence("a" * 32)
    slots = [occupy(pool, each)[0] for each in (mine, shared)]
    for slot, each in zip(slots, (mine, shared), strict=True):
        finish(pool, slot, each)

    again = [
        (scope, *occupy(pool, seq := sequence("a" * 48, cache_scope=scope)), seq)
        for scope in ("me", "")
    ]
    assert [(scope, slot.index, keep) for scope, slot, keep, _, _ in again] == [
        ("me", 0, 40),
        ("", 1, 32),
    ]
    for _, slot, _, _, seq in again:
        finish(pool, slot, seq)
    # Somebody else's longer prefix is not even preferred: the place used longest ago is.
    slot, keep, _ = occupy(pool, sequence("a" * 48, cache_scope="you"))
    assert (slot.index, keep) == (0, 0)
    slot, keep, _ = occupy(pool, sequence("a" * 48, cache_scope="me"))
    assert keep == 0, "overwritten by another's"


@pytest.mark.parametrize("damage", ["reserved_cells", "idle_cells"])
def test_integrity_notices_wrong_books(damage):
    pool = SlotPool(slots=1, kv_cells=100)
    setattr(pool, damage, 1)
    with pytest.raises(RuntimeError, match="sums differ"):
        pool.check_integrity()


def test_release_twice_is_harmless():
    pool = SlotPool(slots=1, kv_cells=100)
    seq = sequence()
    slot = occupy(pool, seq)[0]
    finish(pool, slot, seq)
    before = repr(pool)
    pool.release(slot)
    assert repr(pool) == before


def run_to_its_end(pool, prompt, max_tokens=1):
    seq = sequence(prompt, max_tokens)
    slot, keep, edits = occupy(pool, seq)
    finish(pool, slot, seq)
    return slot.index, keep, edits


def test_a_longer_prefix_unused_for_long_goes_before_a_shorter_one_in_use():
    pool = SlotPool(slots=2, kv_cells=400, sharing=True)
    run_to_its_end(pool, "l" * 40)
    for _ in range(4):
        run_to_its_end(pool, "s" * 32)
    assert repr(pool) == "<SlotPool 0+72/400 cells [40 cached, 32 cached]>"
    assert run_to_its_end(pool, "x" * 16) == (0, 0, [Truncation(0, 0)])


def test_to_be_shared_is_to_be_used():
    pool = SlotPool(slots=4, kv_cells=150, sharing=True)
    run_to_its_end(pool, "a" * 48)
    run_to_its_end(pool, "b" * 48)
    index, keep, edits = run_to_its_end(pool, "a" * 40 + "A" * 8)
    assert (index, keep, edits) == (2, 40, [Copy(0, 2, 40)])
    assert pool.idle_cells == 48 + 48 + 8
    # The second was of use to nobody for longest.
    assert occupy(pool, sequence("c" * 56, 6))[2] == [Truncation(1, 32)]


def test_ends_that_nobody_shares_go_before_what_several_begin_with():
    pool = SlotPool(slots=3, kv_cells=120, sharing=True)
    run_to_its_end(pool, "s" * 64 + "a" * 16)
    run_to_its_end(pool, "s" * 64 + "b" * 16)
    assert pool.idle_cells == 64 + 16 + 16
    slot, _, edits = occupy(pool, sequence("x" * 32, 16))
    assert (slot.index, edits) == (2, [Truncation(0, 64), Truncation(1, 72)])
    assert pool.idle_cells == 64 + 8
    pool.check_integrity()


def test_a_beginning_that_only_idle_slots_share_makes_room_at_last():
    pool = SlotPool(slots=3, kv_cells=120, sharing=True)
    run_to_its_end(pool, "s" * 64 + "a" * 16)
    run_to_its_end(pool, "s" * 64 + "b" * 16)
    _, _, edits = occupy(pool, sequence("x" * 80, 16))
    assert edits == [
        Truncation(0, 64),
        Truncation(1, 64),
        Truncation(0, 24),
        Truncation(1, 24),
    ]
    assert pool.idle_cells == 24
    pool.check_integrity()


def test_an_end_that_idle_slots_share_goes_while_a_third_goes_on_from_further_up():
    """Nobody holds cells of his own: two ended alike, and what the third one added somebody runs with."""
    pool = SlotPool(slots=6, kv_cells=800, sharing=True)
    common, end, other = "s" * 96, "u" * 104, "t" * 56
    slots = []
    for prompt in (common + end, common + end + "v" * 16, common + other):
        seq = sequence(prompt, 1)
        slots.append(occupy(pool, seq)[0])
        if prompt[-1] != "v":
            seq.computed = len(seq.tokens)
    running = sequence(common + other + "r" * 40, 1)
    occupy(pool, running)
    running.computed = len(running.tokens)
    for slot in slots:
        pool.release(slot)
    assert [slot.cells for slot in slots] == [200, 200, 152]
    assert pool.idle_cells == 104
    large = sequence("x" * 512, 16)
    _, keep, edits = occupy(pool, large)
    assert keep == 0
    assert edits == [Truncation(0, 168), Truncation(1, 168)]
    assert pool.idle_cells == 72
    pool.check_integrity()
