"""Long texts in pieces, because llama.cpp's search for special tokens is quadratic.

For every piece of text between two special tokens, `llama_tokenize` looks for each of them through
to the end of the whole text: 8,000 short messages take 1.5 s, 300,000 would take most of an hour. A
text may be cut before a special token without changing its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_SPAN = 4096
"""Characters after which the next chance to cut is taken."""


class Cutter:
    """Finds places before special tokens. Immutable, for any thread."""

    def __init__(self, texts: Iterable[str], everything: Iterable[str]) -> None:
        """`texts`: tokens to cut before. `everything`: all special tokens of the vocabulary."""
        # A place within another token's text is no place to cut.
        inner = {char for text in everything for char in text[1:]}
        heads = sorted((t for t in texts if t and t[0] not in inner), key=len, reverse=True)
        self._next = re.compile("|".join(map(re.escape, heads))).search if heads else None

    def cut(self, text: str) -> Iterator[str]:
        """Yield `text` in pieces; each but the first begins with a special token."""
        begin = 0
        while self._next is not None and (found := self._next(text, begin + _SPAN)):
            yield text[begin : found.start()]
            begin = found.start()
        yield text[begin:]
