"""Which turns are left out when a chat does not fit, over chats drawn at random."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.chat.overflow import drop_oldest_turns

SYSTEM = {"role": "system", "content": "s"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str = "a", *calls: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": text}
    return made | ({"tool_calls": [{"id": call} for call in calls]} if calls else {})


def result(call: str | None) -> dict[str, Any]:
    made = {"role": "tool", "content": "r"}
    return made | ({"tool_call_id": call} if call else {})


def at_most(count: int):
    return lambda messages: len(messages) <= count


CALLS = st.sampled_from(["c1", "c2", "c3"])
MESSAGES = st.lists(
    st.one_of(
        st.just(SYSTEM),
        st.builds(user, st.text(max_size=3)),
        st.builds(answer, st.text(max_size=3)),
        st.builds(answer, st.just(""), CALLS),
        st.builds(result, st.one_of(CALLS, st.none())),
    ),
    min_size=1,
    max_size=24,
).map(lambda messages: [dict(message) for message in messages])


def tied(messages):
    """Pairs of places: each tool result with the nearest call before it that it answers."""
    for place, message in enumerate(messages):
        if message["role"] != "tool":
            continue
        wanted = message.get("tool_call_id")
        calls = [
            (before, call["id"])
            for before in range(place)
            for call in messages[before].get("tool_calls", ())
        ]
        named = [before for before, call in calls if call == wanted]
        if calls:
            yield (named or [calls[-1][0]])[-1], place


@given(MESSAGES, st.integers(0, 25))
def test_what_is_left_of_any_chat(messages, room):
    found = drop_oldest_turns(messages, at_most(room))

    if found is None:
        everything = drop_oldest_turns(messages, lambda kept: len(kept) < len(messages))
        assert everything is None or len(drop_all(messages)) > room
        return
    kept, dropped = found
    assert len(kept) <= room
    assert (dropped == 0) == (len(kept) == len(messages))
    places = places_of(kept, messages)
    assert places == sorted(places)
    gone = set(range(len(messages))) - set(places)
    assert all(messages[place]["role"] != "system" for place in gone)
    last = last_turn(messages)
    assert not gone & set(range(last, len(messages)))
    talk = [place for place in range(len(messages)) if messages[place]["role"] != "system"]
    assert sorted(gone) == talk[: len(gone)], "the oldest go, without gaps"
    if gone:
        after = next(place for place in talk if place not in gone)
        assert messages[after]["role"] == "user", "what stays begins with a question"
    for call, answered in tied(messages):
        assert (call in gone) == (answered in gone)


@given(MESSAGES)
def test_as_few_turns_as_possible_are_dropped(messages):
    sizes = []
    for room in range(len(messages), -1, -1):
        found = drop_oldest_turns(messages, at_most(room))
        if found is None:
            break
        sizes.append((found[1], len(found[0])))
    for (fewer, larger), (more, smaller) in itertools.pairwise(sizes):
        assert more in (fewer, fewer + 1), "each turn can be dropped by itself"
        assert (more > fewer) == (smaller < larger)


def drop_all(messages):
    """What stays when all that may go is gone."""
    best = messages
    for room in range(len(messages), -1, -1):
        found = drop_oldest_turns(messages, at_most(room))
        if found is None:
            return best
        best = found[0]
    return best


def places_of(kept, messages):
    by_id = {id(message): place for place, message in enumerate(messages)}
    return [by_id[id(message)] for message in kept]


def last_turn(messages):
    """Where the last run of user messages begins."""
    start, previous = 0, ""
    for place, message in enumerate(messages):
        if message["role"] == "system":
            continue
        if message["role"] == "user" and previous != "user":
            start = place
        previous = message["role"]
    return start


def test_turns_go_whole_and_the_system_prompt_stays():
    chat = [
        SYSTEM,
        user("1"),
        answer("", "c"),
        result("c"),
        answer(),
        user("2"),
        answer(),
        user("3"),
    ]

    assert drop_oldest_turns(chat, at_most(8)) == (chat, 0)
    assert drop_oldest_turns(chat, at_most(7)) == ([SYSTEM, *chat[5:]], 1)
    assert drop_oldest_turns(chat, at_most(3)) == ([SYSTEM, chat[-1]], 2)
    assert drop_oldest_turns(chat, at_most(1)) is None


def test_a_document_stays_with_the_question_after_it():
    chat = [user("1"), answer(), user("the document"), user("the question")]

    assert drop_oldest_turns(chat, at_most(3)) == (chat[2:], 1)
    assert drop_oldest_turns(chat, at_most(1)) is None


def test_a_result_that_comes_after_another_question_keeps_its_call():
    chat = [user("0"), answer(), user("1"), answer("", "c"), user("2"), result("c"), user("3")]

    assert drop_oldest_turns(chat, at_most(6)) == (chat[2:], 1)
    assert drop_oldest_turns(chat, at_most(3)) == (chat[6:], 2)


def test_long_chats_are_asked_about_a_few_times():
    chat = [each for number in range(500) for each in (user(str(number)), answer())]
    asked = []

    def fits(messages):
        asked.append(len(messages))
        return len(messages) <= 300

    found = drop_oldest_turns(chat, fits)

    assert found == (chat[-300:], 350)
    assert len(asked) <= 12
