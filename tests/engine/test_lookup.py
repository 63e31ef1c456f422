"""What a sequence's own past foresees."""

import random

from server.engine.lookup import Lookup


def grown(tokens, prompt=0):
    """A lookup that was told `tokens` one by one, the first `prompt` at once."""
    lookup, said = Lookup(), list(tokens[:prompt])
    lookup.index(said, len(said))
    for token in tokens[prompt:]:
        said.append(token)
        lookup.push(said)
    return lookup, said


def test_what_followed_the_last_three_tokens_before_is_foreseen():
    lookup, said = grown([*b"one two three four; ", *b"one t"], prompt=20)
    assert bytes(lookup.draft(said, 8)) == b"wo three"
    assert 0 < lookup.chance < 1


def test_two_alike_tokens_foresee_nothing():
    lookup, _ = grown([*b"abcdefgh", *b"xcd"])
    assert lookup.chance == 0


def test_the_latest_continuation_counts():
    lookup, said = grown(b"abc1 abc2 abc")
    assert bytes(lookup.draft(said, 1)) == b"2"


def test_a_draft_goes_on_repeating_beyond_what_was_said():
    lookup, said = grown(b"xyzabcabcabc")
    assert bytes(lookup.draft(said, 10)) == b"abcabcabca"
    lookup, said = grown(b"aaaa")
    assert bytes(lookup.draft(said, 5)) == b"aaaaa"


def test_chance_follows_what_came_true():
    text = random.Random(1).randbytes(200)
    fresh, _ = grown(text + text[:3])
    sure, _ = grown(text + text[:60])
    disappointed, said = grown(text + text[:60] + b"?" + text[61:64])
    assert fresh.chance <= 0.5
    assert sure.chance > 0.95
    assert fresh.chance < disappointed.chance < sure.chance
    assert disappointed.draft(said, 3) == list(text[64:67])


def test_what_never_comes_true_has_no_chance():
    rng = random.Random(2)
    said = []
    lookup = Lookup()
    for _ in range(300):  # the same three tokens, and each time another behind them
        for token in (1, 2, 3, rng.randrange(100, 10_000)):
            said.append(token)
            lookup.push(said)
    lookup.push([*said, 1, 2, 3][: len(said) + 1])
    assert lookup.chance < 0.7


def test_a_prompt_can_be_taken_in_piece_by_piece_while_tokens_come():
    text = random.Random(3).randbytes(500)
    said, lookup = list(text), Lookup()
    for token in text[:40]:
        said.append(token)
        lookup.push(said)
        assert lookup.index(said, 40) <= 40
    assert lookup.backlog(said) == 0
    said.append(text[40])
    lookup.push(said)
    assert bytes(lookup.draft(said, 20)) == text[41:61]


def test_memory_and_work_are_one_entry_per_token():
    text = random.Random(4).choices(range(50_000), k=3000)
    lookup, said = grown(text, prompt=1000)
    assert len(lookup._continuations) <= len(said)
    assert lookup.backlog(said) == 0


def test_equal_hashes_of_other_tokens_foresee_nothing(monkeypatch):
    monkeypatch.setattr("server.engine.lookup.hash", lambda _: 1, raising=False)
    lookup, _ = grown(b"abcdefghijkl")
    assert lookup.chance == 0
