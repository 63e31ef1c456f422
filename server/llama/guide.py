"""Which tokens a sequence may draw next: its reasoning's budget, its grammar. One `Guide` per sequence that has either.

A guide follows what is fed, not what was drawn: a token counts when it stands in a row that is sampled. So calls that
are repeated, drafts that do not come true and pauses without a slot need no word to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum, auto

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from server.core.errors import GenerationFailed
from server.core.request import Constraint, GenerationRequest, Thinking
from server.engine.interface import Tokenizer
from server.llama.grammar import LlamaGrammar

Floats = npt.NDArray[np.float32]

_BREAKS = (b"\n", b"\n\n")
"""What models write between their reasoning and the answer."""
_BURST, _SHARE = 0.25, 0.005
"""Seconds of the engine's thread that a guide may take in all, and so much more with each token: all streams wait for
it. Most take 0.0001 per token; ambiguous grammars take longer the longer the text is."""


class Masks:
    """Forbids tokens in a row of logits, in place. Buffers of the vocabulary's size, made once; for one thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take room for its vocabulary: some five bytes for each token."""
        words = -(-tokenizer.n_vocab // 32)
        self.eog = sorted(tokenizer.eog)
        self.breaks = frozenset(
            token for token, piece in enumerate(tokenizer.pieces) if piece in _BREAKS
        )
        self._n_vocab = tokenizer.n_vocab
        self._words = np.zeros(words, np.uint32)
        self._indices = np.empty(4 * words, np.intp)
        self._caps = np.empty((4 * words, 8), np.float32)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._cap_of = np.where(bits, np.inf, -np.inf).astype(np.float32)
        """The eight caps of each byte of a mask."""

    def follow(self, matcher: LLMatcher, logits: Floats, also: Iterable[int] = ()) -> None:
        """Forbid all but what `matcher` allows next and the tokens `also`. Check `matcher.is_error` after it."""
        words = self._words
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        for token in also:
            words[token >> 5] |= np.uint32(1 << (token & 31))
        np.copyto(self._indices, words.view(np.uint8))
        np.take(self._cap_of, self._indices, axis=0, out=self._caps, mode="clip")
        # Not by a boolean mask: where allowed and forbidden tokens alternate, that takes 20 times as long.
        np.minimum(logits, self._caps.reshape(-1)[: self._n_vocab], out=logits)

    def only(self, tokens: list[int], logits: Floats) -> None:
        """Forbid all but `tokens`."""
        kept = logits[tokens]
        logits.fill(-np.inf)
        logits[tokens] = kept

    def without(self, tokens: list[int], logits: Floats) -> None:
        """Forbid `tokens`."""
        logits[tokens] = -np.inf


class _Stage(Enum):
    START = auto()
    """Nothing was drawn: reasoning may begin, or the answer."""
    THINKING = auto()
    ANSWER = auto()


class Guide:
    """Where one sequence stands, and what it may draw there."""

    def __init__(
        self,
        masks: Masks,
        n_prompt: int,
        thinking: Thinking | None,
        constraint: Constraint | None,
        bias: Mapping[int, float],
    ) -> None:
        """`n_prompt`: tokens of the prompt, none of which counts; `bias`: what the sampler adds to logits."""
        self._masks = masks
        self._n_prompt = n_prompt
        self._bias = bias
        self._thinking = thinking
        self._closing = [] if thinking is None else list(thinking.closing) or [thinking.end]
        self._constraint = constraint
        self._triggered = constraint is not None and constraint.trigger is not None
        self._taken: list[int] = []
        self._seconds = 0.0
        self._begin()

    def _begin(self) -> None:
        thinking = self._thinking
        if thinking is None:
            self._stage = _Stage.ANSWER
        else:
            self._stage = _Stage.THINKING if thinking.inside else _Stage.START
        self._thought = 0
        self._closed = 0
        """Tokens of the closing that were forced."""
        self._breaking = False
        """Whether a line break may come: reasoning has just come to its own end."""
        self._matched = False
        """Whether the one match that was wanted is complete."""
        self._matcher: LLMatcher | None = None
        if self._constraint is not None and not self._triggered:
            self._matcher = self._constraint.grammar.begin()

    def take(self, position: int, token: int) -> None:
        """Take the token of a row that is about to be sampled, which stands at `position` of the sequence.

        A position that was taken before is one that is computed again: what came behind it does not count any more.
        Raises `GenerationFailed` when the token, or its place, cannot be.
        """
        at, taken = position - self._n_prompt, self._taken
        if at == len(taken):
            taken.append(token)
            self._step(token)
        elif at > len(taken):
            message = f"Token {position} came without the {at - len(taken)} before it."
            raise GenerationFailed(message)
        elif taken[max(at, 0) :] != ([token] if at >= 0 else []):
            self._again([*taken[:at], token] if at >= 0 else [])

    def _again(self, tokens: list[int]) -> None:
        self._taken = tokens
        self._begin()
        for token in tokens:
            self._step(token)

    def _step(self, token: int) -> None:
        thinking = self._thinking
        if thinking is None or self._stage is _Stage.ANSWER:
            self._answer(token)
        elif self._stage is _Stage.START:
            if token == thinking.start:
                self._stage = _Stage.THINKING
            else:
                self._stage = _Stage.ANSWER
                self._answer(token)
        elif self._spent(thinking):
            self._closed += 1
            if self._closed == len(self._closing):
                self._stage = _Stage.ANSWER
        elif token == thinking.end:
            self._stage, self._breaking = _Stage.ANSWER, True
        else:
            self._thought += 1

    def _spent(self, thinking: Thinking) -> bool:
        return thinking.budget is not None and self._thought >= thinking.budget

    def _answer(self, token: int) -> None:
        breaking, self._breaking = self._breaking, False
        constraint = self._constraint
        if constraint is None:
            return
        matcher = self._matcher
        if matcher is None:
            if token != constraint.trigger:
                return
            matcher = self._matcher = constraint.grammar.begin()
        if breaking and token in self._masks.breaks and not matcher.validate_tokens([token]):
            return
        constraint.grammar.wear += 1
        if not matcher.consume_token(token):
            raise self._lost(matcher)
        if self._triggered and matcher.is_stopped():
            self._matcher, self._matched = None, constraint.once

    def restricts(self) -> bool:
        """Whether anything is forbidden for the next token."""
        thinking = self._thinking
        if thinking is not None and self._stage is not _Stage.ANSWER:
            bound = self._constraint is not None and not self._triggered
            return bound or self._spent(thinking)
        return self._matcher is not None or self._matched

    def restrict(self, logits: Floats) -> None:
        """Set the logits (n_vocab,) of what is forbidden to -inf. Raises `GenerationFailed`."""
        masks, thinking, matcher = self._masks, self._thinking, self._matcher
        if thinking is not None and self._stage is _Stage.THINKING:
            if self._spent(thinking):
                masks.only([self._closing[self._closed]], logits)
            elif matcher is not None:  # an end here would be an answer without what was asked for
                masks.without(masks.eog, logits)
        elif matcher is not None:
            masks.follow(matcher, logits, self._beside(logits))
            if matcher.is_error():
                raise self._lost(matcher)
        elif self._matched:
            masks.only(masks.eog, logits)
        elif self._stage is _Stage.START and thinking is not None and self._spent(thinking):
            masks.without([thinking.start], logits)

    def spend(self, seconds: float) -> None:
        """Count the CPU time that it took. Raises `GenerationFailed` when it is too much."""
        self._seconds += seconds
        if self._seconds > _BURST + _SHARE * len(self._taken):
            raise GenerationFailed(
                "The output form takes too long to follow: simplify its patterns, or its alternatives."
            )

    def _lost(self, matcher: LLMatcher) -> GenerationFailed:
        if self._constraint is not None:
            self._constraint.grammar.spoil()
        if "too many" in matcher.get_error() or "Parser Error: Current row" in matcher.get_error():
            return GenerationFailed(
                "The output form is too complex to go on with: simplify its patterns, or its counted repetitions."
            )
        return GenerationFailed("The output form cannot be followed any further.")

    def _beside(self, logits: Floats) -> Collection[int]:
        """Tokens that may come although the grammar does not know them."""
        thinking = self._thinking
        if self._stage is _Stage.START and thinking is not None and not self._spent(thinking):
            return (thinking.start,) if self._would_reason(thinking, logits) else ()
        return self._masks.breaks if self._breaking else ()

    def _would_reason(self, thinking: Thinking, logits: Floats) -> bool:
        """Tell whether the model itself would most likely begin with reasoning.

        Beside the few tokens of a grammar, a marker that it hardly ever begins with could be the likeliest one.
        """
        if self._bias:
            logits = logits.copy()  # once in an answer
            logits[list(self._bias)] += np.fromiter(self._bias.values(), np.float32)
        return bool(logits[thinking.start] >= logits.max())


def make_guide(masks: Masks, request: GenerationRequest) -> Guide | None:
    """Return the guide of `request`; None: it may draw anything. Raises `ValueError` for a foreign grammar."""
    thinking, constraint = request.thinking, request.constraint
    if constraint is None and (thinking is None or thinking.budget is None):
        return None
    if constraint is not None and not isinstance(constraint.grammar, LlamaGrammar):
        message = f"{type(constraint.grammar).__name__} is no grammar of this backend"
        raise ValueError(message)
    bias = request.sampling.logit_bias
    return Guide(masks, len(request.prompt), thinking, constraint, bias)
