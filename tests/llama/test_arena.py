"""Memory for saved cells: nobody's bytes are another's, and what is given back is used again."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.llama.arena import Arena, make_arena

KIB = 2**10
BLOCK = 64 * KIB


def taken(arena, nbytes):
    array = arena.take(nbytes)
    assert array is not None
    return array


def place(array):
    return array.ctypes.data


class Machine(RuleBasedStateMachine):
    """Takes and drops at random, in an arena of 16 blocks, each array filled with a number of its own."""

    def __init__(self):
        super().__init__()
        self.arena = Arena(16 * BLOCK)
        self.held = {}
        self.begun = 0
        self.base = place(self.arena.take(1))

    @rule(nbytes=st.integers(1, 6 * BLOCK))
    def take(self, nbytes):
        blocks = -(-nbytes // BLOCK)
        free = set(range(32))
        for array in self.held.values():
            begin = (place(array) - self.base) // BLOCK
            free -= set(range(begin, begin - (-array.nbytes // BLOCK)))
        fits = [i for i in range(32) if free.issuperset(range(i, i + blocks))]
        array = self.arena.take(nbytes)
        if 32 - len(free) + blocks > 16 or not fits:
            assert array is None
            return
        assert array is not None
        assert place(array) == self.base + fits[0] * BLOCK, "the lowest place"
        assert array.nbytes == nbytes
        self.begun += 1
        array[:] = self.begun % 251
        self.held[self.begun] = array

    @rule(which=st.integers(0, 100))
    def drop(self, which):
        if self.held:
            del self.held[sorted(self.held)[which % len(self.held)]]

    @rule()
    def cool(self):
        self.arena.cool()
        assert self.arena.warm == self.arena.used

    @rule(nbytes=st.integers(1, 16 * BLOCK))
    def touch(self, nbytes):
        self.arena.touch(nbytes)

    @invariant()
    def nobody_changed_what_another_one_holds(self):
        for number, array in self.held.items():
            assert (array == number % 251).all()

    @invariant()
    def its_memory_has_a_limit(self):
        used = sum(-(-array.nbytes // BLOCK) * BLOCK for array in self.held.values())
        assert self.arena.used == used <= self.arena.warm
        assert self.arena.warm <= 16 * BLOCK


TestMachine = Machine.TestCase


def test_neighbours_that_went_serve_a_larger_one():
    arena = Arena(4 * BLOCK)
    first, second, third = (arena.take(BLOCK) for _ in range(3))
    begin = place(first)
    del first, second
    larger = arena.take(2 * BLOCK)
    assert place(larger) == begin
    assert place(third) == begin + 2 * BLOCK


def test_beyond_its_limit_there_is_nothing_until_something_goes():
    arena = Arena(4 * BLOCK)
    first, second = arena.take(BLOCK), arena.take(3 * BLOCK - 1)
    begin = place(first)
    assert arena.take(1) is None
    assert arena.take(0) is None
    del first
    assert place(arena.take(1)) == begin
    assert second.nbytes == 3 * BLOCK - 1


def test_a_place_is_found_between_others_and_memory_stays_within_the_limit():
    arena = Arena(4 * BLOCK)
    parts = [arena.take(BLOCK) for _ in range(4)]
    begin = place(parts[0])
    del parts[2], parts[0]
    large = arena.take(2 * BLOCK)
    assert place(large) == begin + 4 * BLOCK
    assert arena.used == arena.warm == 4 * BLOCK


def test_a_view_keeps_the_memory():
    arena = Arena(4 * BLOCK)
    view = taken(arena, BLOCK)[5:][3:9]
    view[:] = 7
    gc.collect()
    other = taken(arena, BLOCK)
    other[:] = 9
    assert view.tolist() == [7] * 6
    del view
    gc.collect()
    assert arena.used == BLOCK


def test_what_is_held_outlives_the_arena():
    arena = Arena(4 * BLOCK)
    array = taken(arena, BLOCK)
    array[:] = 5
    arena.cool()
    del arena
    gc.collect()
    assert (array == 5).all()
    del array


def test_engines_take_and_drop_at_once():
    arena = Arena(64 * BLOCK)
    wrong = []

    def engine(number):
        for turn in range(200):
            array = arena.take(1 + turn % 5 * BLOCK)
            if array is None:
                wrong.append("no room")
                continue
            array[::KIB] = number
            if not (array[::KIB] == number).all():
                wrong.append("another one's bytes")

    threads = [threading.Thread(target=engine, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert arena.used == 0


def test_an_arena_that_is_collected_inside_of_itself_does_not_wait_for_itself(monkeypatch):
    """A finalizer that comes while the arena is at work on the same thread."""
    arena = Arena(4 * BLOCK)
    held = [arena.take(BLOCK)]
    found = arena._lowest

    def lowest(count):
        held.clear()
        return found(count)

    monkeypatch.setattr(arena, "_lowest", lowest)
    array = arena.take(BLOCK)
    assert arena.used == array.nbytes == BLOCK


@pytest.mark.parametrize("limit", [1, BLOCK + 1, 8 * 2**30, 2**40])
def test_addresses_cost_no_memory(limit):
    arena = Arena(limit)
    assert (arena.used, arena.warm) == (0, 0)
    assert 2 * arena._most <= 2**16 + 2
    arena.touch(BLOCK)
    assert arena.warm == max(BLOCK, arena.block)


def test_no_budget_or_no_addresses_is_no_arena(caplog):
    assert make_arena(0) is None
    assert make_arena(2**61) is None
    assert "No addresses for saved cells" in caplog.text
    assert isinstance(make_arena(1), Arena)


def test_memory_that_went_back_to_the_system_is_empty_when_it_is_taken_again():
    arena = Arena(4 * BLOCK)
    array = taken(arena, BLOCK)
    array[:] = 3
    del array
    arena.cool()
    assert arena.warm == 0
    assert not np.any(arena.take(BLOCK))
