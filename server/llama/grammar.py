"""Grammars over one vocabulary, compiled by llguidance: JSON Schemas, regular expressions, Lark."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from server.core.errors import InvalidRequest
from server.engine.grammar import CompiledGrammar, GrammarSource
from server.engine.interface import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from llguidance._tokenizer import TokenizerWrapper

_REMEMBERED = 256
"""Grammars that are kept; one takes some hundred KB."""
_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""As models write JSON on one line. With free white space some never come to an end."""


class _Pieces:
    """The vocabulary as llguidance asks for it: special tokens begin with 0xff."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        # Rust's side holds this object where Python's collector cannot see it: a cycle would stay for good.
        self._encode = weakref.WeakMethod(tokenizer.encode)
        markers = tokenizer.marker_tokens.items()
        special = {
            *tokenizer.control_tokens.values(),
            # Others stand for plain text: some vocabularies have runs of spaces or line breaks as markers.
            *(token for text, token in markers if text.startswith("<") and text.endswith(">")),
        }
        self.eos_token_id = min(tokenizer.eog)
        self.special_token_ids: Sequence[int] = sorted(special)
        self.tokens: Sequence[bytes] = [
            b"\xff" + tokenizer.decode([token], special=True) if token in special else piece
            for token, piece in enumerate(tokenizer.pieces)
        ]

    def __call__(self, text: str) -> list[int]:
        encode = self._encode()
        return [] if encode is None else encode(text)


@dataclass(frozen=True, slots=True)
class LlamaGrammar:
    """A matcher at its beginning; every sequence follows a copy."""

    matcher: LLMatcher

    def begin(self) -> LLMatcher:
        """Return a matcher of one's own. Takes microseconds."""
        return self.matcher.deep_copy()


class LlamaGrammars:
    """Compiles and remembers. For any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the vocabulary: some 0.2 s for 152,000 tokens."""
        self._tokenizer: LLTokenizer | None = None
        """None: no token ends an answer, so that none could end where its form does."""
        if tokenizer.eog:
            pieces = cast("TokenizerWrapper", _Pieces(tokenizer))
            self._tokenizer = LLTokenizer(pieces, eos_token=sorted(tokenizer.eog))
        self._known: OrderedDict[GrammarSource, LlamaGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        """Return the grammar, from the cache if it is there. Raises `InvalidRequest`."""
        with self._lock:
            known = self._known.get(source)
            if known is not None:
                self._known.move_to_end(source)
                return known
        made = self._compile(source)
        with self._lock:
            self._known[source] = made
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return made

    def _compile(self, source: GrammarSource) -> LlamaGrammar:
        if self._tokenizer is None:
            raise _refusal(source, "this model has no token that ends an answer.")
        try:
            matcher = LLMatcher(self._tokenizer, _text(source), log_level=0)
        except ValueError as error:
            raise _refusal(source, str(error)) from error
        if not matcher.is_error():
            matcher.deep_copy().compute_bitmask()  # what explodes does so at its first mask
        if matcher.is_error():
            raise _refusal(source, matcher.get_error())
        return LlamaGrammar(matcher)


def _text(source: GrammarSource) -> str:
    match source.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(source.text, defaults=_JSON_STYLE)
        case "regex":
            return LLMatcher.grammar_from_regex(source.text)
        case "gbnf":
            return LLMatcher.grammar_from_lark(any_to_lark(source.text))
        case "lark":
            return LLMatcher.grammar_from_lark(source.text)


def _refusal(source: GrammarSource, reason: str) -> InvalidRequest:
    told = reason.split("<state>", maxsplit=1)[0].strip()
    return InvalidRequest(f"This output form cannot be enforced: {told}", param=source.param)
