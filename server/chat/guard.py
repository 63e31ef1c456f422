"""Callers' text never becomes control tokens.

Before a template is rendered, every control-token text in the callers' strings is replaced by one
private-use character. After rendering, the text is cut at those characters: what the template wrote
is tokenized with control tokens, what the caller wrote without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.core.errors import InvalidRequest
from server.engine.interface import Tokenizer

_FIRST, _LAST = 0x100000, 0x10FFFD
"""Supplementary private-use area B: the placeholders. The same characters from a caller are
protected too."""
PRIVATE = f"{chr(_FIRST)}-{chr(_LAST)}"
_CUT = re.compile(f"([{PRIVATE}])")


class _Finder:
    """Finds the texts of a vocabulary's special tokens, whole or cut off at a string's end."""

    def __init__(self, texts: Iterable[str]) -> None:
        known = {text for text in texts if text}
        heads = "".join(re.escape(head) for head in sorted({text[0] for text in known}))
        self.suspect = re.compile(f"[{heads}{PRIVATE}]").search
        whole = f"{_trie(known)}|" if known else ""
        self.pattern = re.compile(f"{whole}[{PRIVATE}]")
        self._prefixes = {text[:size] for text in known for size in range(1, len(text))}
        self._longest = max(map(len, known), default=1) - 1

    def tail(self, text: str) -> int:
        """Length of the longest end of `text` with which a special token begins.

        The template, or the next string, could complete it.
        """
        for size in range(min(self._longest, len(text)), 0, -1):
            if text[-size:] in self._prefixes:
                return size
        return 0


class Guard:
    """What has to be protected in one vocabulary. Immutable, for any thread."""

    def __init__(self, tokenizer: Tokenizer, markers: Iterable[str]) -> None:
        """`markers`: texts of user-defined tokens that give an answer its structure."""
        self._encode = tokenizer.encode
        marks = list(markers)
        self._control = _Finder(tokenizer.control_tokens)
        self._all = _Finder([*tokenizer.control_tokens, *marks])
        self._marks = _Finder([*tokenizer.marker_tokens])

    def begin(self) -> Protection:
        """Return the protection of one request."""
        return Protection(self._control, self._all, self)

    def encode_literal(self, text: str) -> list[int]:
        """Token ids of `text`, none of them a control or marker token.

        Vocabularies read user-defined tokens even without `parse_special`, hence the cutting.
        """
        if not text:
            return []
        if self._marks.pattern.search(text) is None or len(text) == 1:
            return self._encode(text, parse_special=False)
        return self._encode(text[:1], parse_special=False) + self.encode_literal(text[1:])

    def encode_template(self, text: str) -> list[int]:
        """Token ids of what the template wrote, control tokens included."""
        return self._encode(text, parse_special=True) if text else []


class Protection:
    """Placeholders of one request: which character stands for which text of the caller."""

    def __init__(self, control: _Finder, everything: _Finder, guard: Guard) -> None:
        self._control = control
        self._all = everything
        self._guard = guard
        self._placeholders: dict[str, str] = {}

    def protect(self, value: Any, *, markers: bool) -> Any:
        """Return the JSON-like `value` with placeholders; the same object where nothing is hidden.

        `markers`: hide marker tokens such as `<think>` too, not only control tokens.
        Raises `InvalidRequest` when there are more distinct texts than placeholders.
        """
        if isinstance(value, str):
            finder = self._all if markers else self._control
            return value if finder.suspect(value) is None else self._hide(value, finder)
        if isinstance(value, Mapping):
            return {
                self.protect(key, markers=markers): self.protect(item, markers=markers)
                for key, item in value.items()
            }
        if isinstance(value, Sequence):
            return [self.protect(item, markers=markers) for item in value]
        return value

    def encode(self, rendered: str) -> list[int]:
        """Tokenize the template's output; what was hidden stays text."""
        if not self._placeholders:
            return self._guard.encode_template(rendered)
        hidden = {char: text for text, char in self._placeholders.items()}
        tokens: list[int] = []
        for piece in _CUT.split(rendered):
            literal = hidden.get(piece)
            if literal is None:
                tokens += self._guard.encode_template(piece)
            else:
                tokens += self._guard.encode_literal(literal)
        return tokens

    def reveal(self, rendered: str) -> str:
        """Return the template's output as the caller would read it."""
        hidden = {char: text for text, char in self._placeholders.items()}
        return _CUT.sub(lambda match: hidden.get(match[0], match[0]), rendered)

    def _hide(self, text: str, finder: _Finder) -> str:
        masked = finder.pattern.sub(lambda match: self._place(match[0]), text)
        size = finder.tail(masked)
        return masked[:-size] + self._place(masked[-size:]) if size else masked

    def _place(self, text: str) -> str:
        known = self._placeholders.get(text)
        if known is None:
            if len(self._placeholders) > _LAST - _FIRST:
                raise InvalidRequest("Too many different private-use characters.", param="messages")
            known = self._placeholders[text] = chr(_FIRST + len(self._placeholders))
        return known


def _trie(texts: set[str]) -> str:
    """Return a pattern for the longest of `texts`, whose cost hardly grows with their number."""
    heads: dict[str, set[str]] = {}
    for text in texts:
        if text:
            heads.setdefault(text[0], set()).add(text[1:])
    branches = [re.escape(head) + _trie(rest) for head, rest in sorted(heads.items())]
    if not branches:
        return ""
    if len(branches) == 1 and "" not in texts:
        return branches[0]
    return f"(?:{'|'.join(branches)})" + ("?" if "" in texts else "")
