"""Which prefixes stay in host memory, and that their bytes stay within bounds."""

import hypothesis.strategies as st
from hypothesis import given

from server.engine.host_memory import BLOCK, MOST_ENTRIES, HostBudget, HostMemory
from server.engine.prefix_index import common_prefix_length, token_key
from tests.factories import ScriptedState, state_size


def key_of(text: str) -> bytes:
    return token_key(list(text.encode()))


def put(memory, text, scope="", public=0):
    """Keep a prefix, as `Parking` does; None when there is no room."""
    key, state = key_of(text), ScriptedState(tuple(text.encode()))
    if not memory.make_room(state.nbytes, scope, key, public):
        return None
    return memory.add(scope, key, state, public)


def kept(memory):
    return [bytes(entry.state.tokens).decode() for entry in memory]


def of_cells(*cells: int) -> HostMemory:
    """Room for exactly these states."""
    return HostMemory(HostBudget(sum(map(state_size, cells))))


def test_the_longest_prefix_of_the_scope_is_found():
    memory = of_cells(1000, 1000)
    short, long = put(memory, "a" * 100 + "b" * BLOCK), put(memory, "a" * 200)
    other = put(memory, "a" * 300, scope="other")
    assert memory.find("", key_of("a" * 250)) == (long, 200)
    assert memory.find("", key_of("a" * 100 + "b" * BLOCK + "cd")) == (short, 100 + BLOCK)
    assert memory.find("other", key_of("a" * 250)) == (other, 250)
    assert memory.find("third", key_of("a" * 250)) == (None, 0)
    assert memory.find("", key_of("a" * (BLOCK - 1))) == (None, 0)


def test_what_goes_on_takes_the_place_of_its_beginning_but_for_some_last_tokens():
    memory = of_cells(1000, 1000)
    told = "a conversation that was answered, and goes on after that. " * 2
    put(memory, told + "x" * (BLOCK - 1))
    put(memory, told + "y" * BLOCK)
    put(memory, "y" * BLOCK, scope="other")
    put(memory, told + "the answer as the template writes it, and the next question")
    texts = [told + "y" * BLOCK, "y" * BLOCK]
    texts.append(told + "the answer as the template writes it, and the next question")
    assert kept(memory) == texts


def test_what_is_public_is_found_from_everywhere_and_nothing_after_it():
    memory = of_cells(1000, 1000)
    agent = "You are an agent whose words are the server's own. " * 3
    entry = put(memory, agent + "a secret question", scope="a", public=len(agent))
    asked = key_of(agent + "a secret question")
    assert memory.find("a", asked) == (entry, len(agent) + 17)
    assert memory.find("b", asked, len(agent)) == (entry, len(agent))
    assert memory.find("b", asked, 100) == (entry, 100)
    assert memory.find("b", asked) == (None, 0), "not public for who asks"
    put(memory, agent + "a secret question, and more", scope="a")
    assert memory.find("b", asked, len(agent)) == (entry, len(agent)), "not replaced"
    memory.drop(entry)
    assert memory.find("b", asked, len(agent)) == (None, 0)
    put(memory, "short", scope="a", public=5)
    put(memory, agent[:70], scope="a", public=1000)
    assert memory.find("b", asked, len(agent))[1] == 70
    put(memory, agent, scope="c", public=80)
    assert memory.find("b", asked, len(agent))[1] == 80, "as much as is public in both"


@given(
    texts=st.lists(st.text("ab", min_size=BLOCK, max_size=3 * BLOCK), max_size=10),
    prompt=st.text("ab", max_size=4 * BLOCK),
    dropped=st.sets(st.integers(0, 15)),
)
def test_a_match_is_as_good_as_a_look_at_all_of_them(texts, prompt, dropped):
    memory = HostMemory(HostBudget(10**9))
    texts += [prompt[:end] + text for end in (70, 130, 200) for text in texts[:2]]
    entries = [put(memory, text) for text in texts]
    for index in dropped:
        if index < len(entries) and entries[index] in list(memory):
            memory.drop(entries[index])
    found, cells = memory.find("", key_of(prompt))
    best = max(
        (common_prefix_length(key_of(prompt), entry.key) // 4 for entry in memory), default=0
    )
    assert cells == (best if best >= BLOCK else 0)
    assert found is None or found in list(memory)


def test_a_prefix_of_a_longer_entry_is_not_kept_twice():
    memory = of_cells(1000)
    put(memory, "a" * 100)
    put(memory, "a" * 100, scope="other")
    put(memory, "a" * 130 + "b" * BLOCK)
    put(memory, "a" * 130 + "c")
    put(memory, "a" * 130 + "c" * 70)
    kinds = ["a" * 100, "a" * 130 + "b" * BLOCK, "a" * 130 + "c" * 70]
    assert sorted(kept(memory)) == kinds


def test_bytes_never_exceed_the_budget_and_what_is_worth_least_goes():
    memory = of_cells(100, 100, 100)
    first, second, third = (put(memory, letter * 100) for letter in "abc")
    for _ in range(2):
        memory.use(first)
        memory.release(first)
    put(memory, "d" * 100)
    assert second not in list(memory), "used longest ago"
    assert {first, third} < set(memory)
    put(memory, "e" * 170)  # takes the room of two
    assert kept(memory) == ["a" * 100, "e" * 170], "what was used stays longest"
    assert put(memory, "f" * 400) is None, "more than all there is"
    assert kept(memory) == ["a" * 100, "e" * 170]
    assert memory.nbytes == state_size(100) + state_size(170)


def test_what_is_in_use_stays():
    memory = of_cells(100, 100)
    first, second = put(memory, "a" * 100), put(memory, "b" * 100)
    memory.use(first)
    memory.use(second)
    assert put(memory, "a" * 101) is None
    memory.release(second)
    assert put(memory, "a" * 90 + "c" * 10) is not None
    assert next(iter(memory)) is first


def test_engines_share_one_budget_in_equal_parts():
    budget = HostBudget(4 * state_size(100))
    one = HostMemory(budget)
    for letter in "abcd":
        put(one, letter * 100)
    assert budget.used == budget.limit
    two = HostMemory(budget)
    assert put(two, "x" * 100) is None, "the other one has not given back yet"
    one.trim()
    assert kept(one) == ["c" * 100, "d" * 100]
    assert put(two, "x" * 100) is not None
    assert budget.used == one.nbytes + two.nbytes == 3 * state_size(100)
    two.close()
    two.close()
    assert put(two, "y" * 100) is None
    assert budget.used == one.nbytes
    assert put(one, "e" * 100) is not None
    assert len(one) == 3


def test_there_are_not_more_entries_than_can_be_looked_at():
    memory = HostMemory(HostBudget(10**9))
    for number in range(MOST_ENTRIES + 3):
        put(memory, f"{number:<5}" + "-" * 95)
    assert len(memory) == MOST_ENTRIES


def test_whether_to_copy_or_compute_follows_what_was_measured():
    memory = of_cells(1000)
    entry = put(memory, "a" * 1000)
    assert [memory.is_worth(entry, rows) for rows in (BLOCK - 1, BLOCK)] == [False, True]
    memory.measured(500, 0.005)  # 10 ms for all of it
    assert [memory.is_worth(entry, rows) for rows in (BLOCK - 1, BLOCK)] == [False, True]
    memory.row_seconds = 0.001
    assert [memory.is_worth(entry, rows) for rows in (9, 11)] == [False, True]
    memory.row_seconds = 0.00005  # a card computes 200 rows meanwhile
    assert [memory.is_worth(entry, rows) for rows in (199, 201)] == [False, True]
    for _ in range(8):
        memory.measured(500, 0.05)  # its bus became slower
    assert [memory.is_worth(entry, rows) for rows in (1900, 2001)] == [False, True]


def test_whether_to_save_or_compute_again_follows_what_was_measured():
    memory = of_cells(1000)

    def least(cells):
        return next(lost for lost in range(1, cells) if memory.is_worth_saving(cells, lost, 16))

    assert least(1600) == 100, "one for 16 copied"
    memory.row_seconds = 0.006
    assert least(1600) == 100
    memory.measured_out(1000, 0.0)
    assert least(1600) == 100, "a clock that stands still tells nothing"
    memory.measured(500, 1.0)
    assert least(1600) == 100, "the way back is another one"
    memory = of_cells(1000)
    memory.measured_out(500, 0.15)
    assert least(1600) == 100
    memory.row_seconds = 0.006
    assert least(1600) == 321, "0.48 s of copying, a quarter of 1.926 s of computing"
    memory.row_seconds = 0.06
    assert least(1600) == 33
    for _ in range(8):
        memory.measured_out(500, 0.015)  # quicker
    assert least(1600) < 5


def test_one_slow_copy_does_not_keep_all_others_from_being_made():
    memory = of_cells(1000)
    memory.row_seconds = 0.006
    memory.measured_out(1000, 10.0)  # the machine was busy
    spared = 0
    while spared < 256 and not memory.is_worth_saving(1000, 999, 16):
        memory.spare()
        spared += 1
    assert 64 < spared < 256
    assert memory.spared == spared
