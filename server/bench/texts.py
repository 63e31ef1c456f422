"""Prompts from a seed: the same on every machine, in every Python, and for every server of a run."""

from __future__ import annotations

import random
from dataclasses import dataclass

WORDS = tuple(
    """
    able account action active address advice afternoon agency agreement airport animal answer approach argument
    article artist attention audience author autumn balance basic battle beach beauty behavior benefit bottle bottom
    branch bridge budget building business button camera campaign capital captain career castle center century certain
    chairman chamber chapter character charge chemical child choice church circle citizen client climate coffee
    collection college comfort command comment commercial committee common community company comparison competition
    computer concept concert condition conference confidence connection contact content contract control corner council
    country couple course credit crisis criticism culture current customer daughter debate decision degree delivery
    demand department design detail device difference dinner direction director discovery discussion display distance
    doctor document driver economy editor education effect effort election element emergency energy engine entrance
    environment equipment error evening event evidence example exchange exercise experience expert factory failure
    family farmer father feature figure finance finger flight flower foreign forest formal fortune forward freedom
    friend future garden general glass government group growth guest guide harbor health heart height history holiday
    hospital hotel house image impact income industry infant information inside interest interview island issue jacket
    journal journey judge justice kitchen knowledge labor ladder language lawyer leader leather lecture length letter
    level library license machine magazine manager manner market material matter meaning measure medicine meeting
    member memory message method middle minute mirror mission mixture model moment money month morning mother motion
    mountain movement museum music nation nature network night north notice number object occasion ocean office officer
    operation opinion orange order organ origin owner package painter palace paper parent partner passage passenger
    pattern payment people percent period permission person picture planet player pleasure pocket policy position power
    practice presence price prince problem process product profit program progress project promise property public
    purpose quality quarter question railway reader reason record region relation release report request research
    resource respect response result return revenue review reward river route safety sample scale scene schedule school
    science screen season second section sentence series service session shape share sheet shelter signal silence
    silver simple skill sleep society solution source space speaker speech spirit spring square stage standard station
    status stone storage store storm story strategy stream street strength structure student studio study style subject
    success sugar summer supply support surface surprise survey system table talent teacher theater theory thing
    thought ticket title topic tower track trade tradition traffic train travel tree truth union unit university valley
    value variety vehicle version victory village vision visitor voice volume water weather weekend weight wheel window
    winter wisdom witness wonder worker world writer yellow
    """.split()  # noqa: SIM905 - a list of so many strings would be as many lines
)
TOKENS_PER_WORD = 1.15
"""Of large vocabularies; where the server counts tokens it is measured."""


@dataclass(frozen=True)
class Texts:
    """Writes text about nothing. `seed` may have parts: the same seed writes the same."""

    seed: str
    tokens_per_word: float = TOKENS_PER_WORD

    def tokens(self, count: int, *name: object) -> str:
        """Return about `count` tokens; another `name` gives another text, from the first word on."""
        return self.words(max(1, round(count / self.tokens_per_word)), *name)

    def words(self, count: int, *name: object) -> str:
        """Return `count` words in sentences of 8 to 16."""
        # `random()` is the one method whose sequence Python promises to keep.
        draw = random.Random("/".join(map(str, (self.seed, *name)))).random  # noqa: S311
        parts: list[str] = []
        left = 0
        for _ in range(count):
            word = WORDS[int(draw() * len(WORDS))]
            if left == 0:
                left = 8 + int(draw() * 9)
                word = word.capitalize()
            left -= 1
            parts.append(word if left else word + ".")
        return " ".join(parts).rstrip(".") + "."

    def shuffled(self, values: list[str], *name: object) -> list[str]:
        """Return `values` in an order of their own."""
        draw = random.Random("/".join(map(str, (self.seed, *name)))).random  # noqa: S311
        return [value for _, value in sorted((draw(), value) for value in values)]
