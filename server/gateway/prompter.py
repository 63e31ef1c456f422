"""From prompts to token ids, for one loaded model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from server.chat.template import ChatTemplate
from server.core.errors import ContextLengthExceeded, InvalidRequest
from server.engine.interface import ModelInfo, Tokenizer
from server.gateway.public import PublicPrefixes
from server.gateway.spec import ChatPrompt, Prompt, TextPrompt
from server.gateway.written import Written

_MANY_CHARACTERS = 16
"""Characters per token that no prose reaches; runs of spaces may."""


class Prompter:
    """Renders and tokenizes. For any thread once it is bound to a model."""

    def __init__(
        self, now: Callable[[], datetime] = datetime.now, *, template: str | None = None
    ) -> None:
        """`now` is what templates are told the date is; `template` replaces the model's own."""
        self._now = now
        self._source = template
        self._bound: tuple[Tokenizer, ChatTemplate] | None = None
        self.public = PublicPrefixes(self.encode, now)
        """Which of its tokens are agents' own words."""
        self.written = Written()
        """Grammars of what requests ask for."""
        self._longest = 1
        """Characters that one token can stand for, at most."""

    def bind(self, info: ModelInfo, tokenizer: Tokenizer) -> None:
        """Compile the model's template, while loading. Raises `ModelFileError`."""
        texts = [*map(len, tokenizer.pieces), *map(len, tokenizer.control_tokens)]
        self._longest = max(1, *texts)
        self._bound = (
            tokenizer,
            ChatTemplate(self._source or info.chat_template, tokenizer, self._now),
        )
        self.public = PublicPrefixes(self.encode, self._now)
        self.written = Written()

    @property
    def template(self) -> ChatTemplate:
        """The chat template of the bound model."""
        return self._parts()[1]

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary of the bound model."""
        return self._parts()[0]

    def encode(self, prompt: Prompt, n_ctx: int) -> list[int]:
        """Token ids of a prompt. Raises `InvalidRequest`, also for an empty one.

        Raises `ContextLengthExceeded` for a text that cannot fit `n_ctx` however it goes on:
        counting megabytes to the end would keep others waiting.
        """
        tokenizer, template = self._parts()
        param = "prompt"
        if isinstance(prompt, ChatPrompt):
            param = "messages"
            tokens = template.encode(
                prompt.messages,
                prompt.tools,
                prompt.template_kwargs,
                check=lambda text: self._refuse_hopeless(tokenizer, text, n_ctx, param),
            )
        elif isinstance(prompt, TextPrompt):
            self._refuse_hopeless(tokenizer, prompt.text, n_ctx, param)
            tokens = tokenizer.encode(
                prompt.text, add_special=True, parse_special=prompt.parse_special
            )
        else:
            tokens = list(prompt.tokens)
            check_token_ids(tokens, tokenizer.n_vocab, param)
        if not tokens:
            raise InvalidRequest("The prompt is empty: it has no tokens.", param=param)
        return tokens

    def _refuse_hopeless(self, tokenizer: Tokenizer, text: str, n_ctx: int, param: str) -> None:
        least = len(text) // self._longest
        beginning = _MANY_CHARACTERS * n_ctx
        if least <= n_ctx and len(text) > beginning:
            # What follows changes the tokens where it joins, no more; half of them is safe by far.
            least = len(tokenizer.encode(text[:beginning])) // 2
        if least > n_ctx:
            raise ContextLengthExceeded(
                prompt_tokens=least, max_tokens=None, n_ctx=n_ctx, param=param, at_least=True
            )

    def _parts(self) -> tuple[Tokenizer, ChatTemplate]:
        if self._bound is None:
            message = "Prompter.bind() was not called when the model was loaded"
            raise RuntimeError(message)
        return self._bound


def check_token_ids(tokens: list[int], n_vocab: int, param: str) -> None:
    """Raise `InvalidRequest` for an id that the vocabulary does not have."""
    if tokens and (min(tokens) < 0 or max(tokens) >= n_vocab):
        wrong = next(token for token in tokens if not 0 <= token < n_vocab)
        raise InvalidRequest(
            f"Token id {wrong} is out of range: this model's ids are 0 to {n_vocab - 1}.",
            param=param,
        )
