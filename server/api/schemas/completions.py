"""`POST /v1/completions`, the legacy one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from server.api.errors import field_path
from server.api.schemas.common import GenerationFields
from server.core.errors import InvalidRequest
from server.gateway.spec import TextPrompt, TokenPrompt

Given = str | list[int]


class CompletionRequest(GenerationFields):
    """The body of a legacy completion."""

    prompt: Any = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: str | None = None
    parse_special: bool | None = None

    def prompts(self) -> list[TextPrompt | TokenPrompt]:
        """Return one prompt per string or token list. Raises `InvalidRequest`."""
        given = self.prompt
        if given is None or given in ("", []):
            raise InvalidRequest("'prompt' is missing or empty.", param="prompt")
        if isinstance(given, str):
            return [self._text(given)]
        if isinstance(given, list) and _is_token(given[0]):
            return [TokenPrompt(_tokens(given, ("prompt",)))]
        if isinstance(given, list):
            return [self._one(item, number) for number, item in enumerate(given)]
        raise InvalidRequest(
            "'prompt' must be a string, a list of token ids, or a list of either.", param="prompt"
        )

    def check(self) -> None:
        """Raise `InvalidRequest` for what this server cannot do."""
        if self.suffix:
            raise InvalidRequest("'suffix' is not supported.", param="suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest(
                "'best_of' is not supported unless it equals 'n'.", param="best_of"
            )
        if self.echo and self.logprobs is not None:
            raise InvalidRequest(
                "'echo' cannot be combined with 'logprobs': the prompt's are not computed.",
                param="echo",
            )

    def _text(self, text: str) -> TextPrompt:
        return TextPrompt(text, parse_special=self.parse_special is not False)

    def _one(self, item: Any, number: int) -> TextPrompt | TokenPrompt:
        if isinstance(item, str) and item:
            return self._text(item)
        if isinstance(item, list) and item:
            return TokenPrompt(_tokens(item, ("prompt", number)))
        raise InvalidRequest(
            "A prompt must be a non-empty string or a non-empty list of token ids.",
            param=field_path(("prompt", number)),
        )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokens(items: list[Any], place: tuple[int | str, ...]) -> list[int]:
    for number, item in enumerate(items):
        if not _is_token(item):
            raise InvalidRequest(
                "Token ids must be whole numbers.", param=field_path((*place, number))
            )
    return items
