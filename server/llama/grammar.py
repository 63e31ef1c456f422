"""Grammars over one vocabulary, compiled by llguidance: JSON Schemas, regular expressions, Lark, GBNF."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from server.core.errors import InvalidRequest
from server.engine.grammar import CompiledGrammar, GrammarKind, GrammarSource
from server.engine.interface import Tokenizer
from server.llama.deep_stack import DeepStack

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from llguidance._tokenizer import TokenizerWrapper

_REMEMBERED_TEXT = 1 << 20
"""Characters of sources whose grammars are kept ..."""
_REMEMBERED = 256
"""... and how many: even one of a few characters takes 40 to 170 KB."""
_LONGEST: dict[GrammarKind, int] = {
    "json_schema": 256 * 1024,
    "lark": 256 * 1024,
    "regex": 16 * 1024,
    "gbnf": 16 * 1024,
}
"""Characters. Definitions that refer on and on nest as deep as their text is long, and so does the compiler's stack:
256 KiB took up to 200 MB of it. Optional parts of a regular expression, and GBNF, take time by their square."""
_MOST_STATES = 100_000
"""Of a grammar's lexer, a kilobyte each. Counting 5,000 characters beyond ASCII takes 10,000."""
_WORN = 10_000
"""Tokens after which a grammar is compiled anew: all who follow it share its lexer, whose states only become more."""
_STEPS_AHEAD = 3
"""Tokens that a new grammar is tried with: what explodes does so where the first alternatives open."""
_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""As models write JSON on one line. With free white space some never come to an end."""
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Let the model choose how text that is certain is cut into tokens. Else llguidance tokenizes all of it anew at each
step: 100,000 characters take 60 ms, in the engine's thread."""
_TOLD = 300
"""Most characters of llguidance's reason."""

_PLAIN = {
    "panic": "it is too large.",
    "Parser Error": "it has too many alternatives in one place.",
    "too many": "its patterns are too complex.",
    "Unable to determine": "its patterns are too complex.",
    "NoExtension": "nothing can match it.",
}
"""What is found in llguidance's messages that speak of its inside, and what it means."""


class _Pieces:
    """The vocabulary as llguidance asks for it: special tokens begin with 0xff."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
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

    def __call__(self, _text: str) -> list[int]:
        # Nothing is tokenized (`_NO_FORCING`). Nor may this object hold the vocabulary: Rust's side holds it where
        # Python's collector cannot see it, and a cycle would stay for good.
        return []


@dataclass(slots=True)
class LlamaGrammar:
    """A matcher at its beginning; every sequence follows a copy, and all share what the lexer has learned."""

    matcher: LLMatcher
    wear: int = 0
    """Tokens that were taken so far, by all. Only the engine's thread counts."""

    def begin(self) -> LLMatcher:
        """Return a matcher of one's own. Takes microseconds."""
        return self.matcher.deep_copy()

    def spoil(self) -> None:
        """Let nobody else begin with it: it has failed somebody, perhaps by what all share."""
        self.wear = _WORN


class LlamaGrammars:
    """Compiles and remembers. For any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the vocabulary: some 0.2 s for 152,000 tokens."""
        self._tokenizer: LLTokenizer | None = None
        """None: no token ends an answer, so that none could end where its form does."""
        self._eog = tokenizer.eog
        if tokenizer.eog:
            pieces = cast("TokenizerWrapper", _Pieces(tokenizer))
            self._tokenizer = LLTokenizer(pieces, eos_token=sorted(tokenizer.eog))
        self._limits = LLParserLimits(max_lexer_states=_MOST_STATES, verbose_errors=False)
        self._stack = DeepStack()
        self._known: OrderedDict[GrammarSource, LlamaGrammar] = OrderedDict()
        self._known_text = 0
        self._lock = threading.Lock()

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        """Return the grammar, from the cache if it is there. Raises `InvalidRequest`.

        Two threads that ask for the same one at once may both compile it.
        """
        with self._lock:
            known = self._known.get(source)
            if known is not None and known.wear < _WORN:
                self._known.move_to_end(source)
                return known
        if len(source.text) > (longest := _LONGEST[source.kind]):
            message = f"it has {len(source.text)} characters, and {longest} are the most."
            raise _refused(source, message)
        made = self._stack.run(lambda: self._compile(source))
        with self._lock:
            if source not in self._known:
                self._known_text += len(source.text)
            self._known[source] = made
            self._known.move_to_end(source)
            while len(self._known) > 1 and (
                self._known_text > _REMEMBERED_TEXT or len(self._known) > _REMEMBERED
            ):
                forgotten, _ = self._known.popitem(last=False)
                self._known_text -= len(forgotten.text)
        return made

    def _compile(self, source: GrammarSource) -> LlamaGrammar:
        if self._tokenizer is None:
            raise _refused(source, "this model has no token that ends an answer.")
        grammar = LLMatcher.grammar_from_lark(_lark(source) + _NO_FORCING)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        trial = matcher.deep_copy()
        for _ in range(_STEPS_AHEAD):
            token = self._any(trial)
            if token is None or not trial.consume_token(token):
                break
        if trial.is_error():
            raise _refused(source, _reason(source.kind, trial.get_error()))
        return LlamaGrammar(matcher)

    def _any(self, matcher: LLMatcher) -> int | None:
        """Return some token that `matcher` allows next and that is no end; None: there is none."""
        if matcher.is_error():
            return None
        left = int.from_bytes(matcher.compute_bitmask(), "little")
        for token in self._eog:
            left &= ~(1 << token)
        return (left & -left).bit_length() - 1 if left else None


def _lark(source: GrammarSource) -> str:
    """Write `source` as a grammar in llguidance's Lark. Raises `InvalidRequest`."""
    match source.kind:
        case "json_schema":
            return "start: %json " + _styled(source)
        case "regex":
            made = json.loads(LLMatcher.grammar_from_regex(source.text))
            return str(made["grammars"][0]["lark_grammar"])
        case "gbnf":
            try:
                return str(any_to_lark(source.text))
            except Exception as error:  # the converter raises bare ones, too
                nested = isinstance(error, RecursionError)
                told = "it nests too deeply." if nested else str(error)
                raise _refused(source, told) from error
        case "lark":
            return source.text


def _styled(source: GrammarSource) -> str:
    try:
        schema = json.loads(source.text)
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise _refused(source, "a JSON Schema is an object.")
        style = schema.get("x-guidance")
        return json.dumps({**schema, "x-guidance": {**_JSON_STYLE, **(style or {})}})
    except RecursionError as error:
        raise _refused(source, "it nests too deeply.") from error
    except (TypeError, ValueError) as error:
        raise _refused(source, f"it is no JSON: {error}") from error


def _reason(kind: GrammarKind, error: str) -> str:
    """Say what llguidance's `error` says, without its traces, its state and the text of the grammar."""
    told = re.split(r"\n<|\n +1 \| ", error, maxsplit=1)[0]
    for inner, plain in _PLAIN.items():
        if inner in told:
            return plain
    place, _, rest = told.partition(": ")
    if re.fullmatch(r"(at )?\d+\(\d+\)", place):
        # Where a grammar was made of something else, the place is not the client's.
        told = told if kind == "lark" else rest
    told = told.replace("failed to compile JSON schema: ", "")
    explained = re.search(r"^error: (.*)", told, re.MULTILINE)
    if explained is not None:
        told = f"a regular expression cannot be compiled: {explained[1]}"
    told = told.partition("\n")[0].strip()
    return told if len(told) <= _TOLD else told[:_TOLD] + "…"


def _refused(source: GrammarSource, reason: str) -> InvalidRequest:
    return InvalidRequest(f"This output form cannot be enforced: {reason}", param=source.param)
