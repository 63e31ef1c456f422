"""What is served under a name: a system prompt, limits and defaults over one set of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from server.core.errors import InvalidRequest
from server.core.request import SamplingParams
from server.store.keys import KeyLimits

Messages = Sequence[Mapping[str, Any]]
SYSTEM_ROLES = ("system", "developer")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Agent:
    """One served model as its clients know it; a plain GGUF is an agent that adds nothing.

    What a request says wins over what is said here, within the limits.
    """

    names: tuple[str, ...]
    """Names that requests may use; the first is the one that answers carry."""
    n_ctx: int
    """Most tokens of one request, prompt and output together; at most the context's own."""
    default_max_tokens: int = 2048
    """Output limit of a request that names none."""
    max_tokens: int | None = None
    """Most tokens that a request may ask for; None: what fits."""
    system: str | None = None
    """Put first, unless the request brings a system message of its own: that one replaces it."""
    messages: Messages = ()
    """Turns before the conversation, after the system message."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Offered where the request says nothing of tools."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """`SamplingParams` fields, for what the request leaves out."""
    stop: tuple[str, ...] = ()
    """Added to the request's own."""
    overflow: Literal["refuse", "drop_oldest"] = "refuse"
    """What happens to a chat that does not fit: a 400, or its oldest turns are dropped, and told."""
    pin: bool = False
    """Its own words are computed once the model is loaded, and kept ready."""
    total_timeout: float | None = None
    """Most seconds from the submission of a request to its last token; None: not limited."""
    description: str = ""
    """Where it comes from, for people."""

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return self.names[0]

    def limited(self, limits: KeyLimits) -> Agent:
        """Return it as a key sees it: with the narrower of both limits."""
        if limits.max_context is None and limits.max_tokens is None:
            return self
        default = self.default_max_tokens
        return replace(
            self,
            n_ctx=min(self.n_ctx, limits.max_context or self.n_ctx),
            max_tokens=_least(self.max_tokens, limits.max_tokens),
            default_max_tokens=min(default, limits.max_tokens or default),
        )

    def standing_in(self, other: Agent) -> Agent:
        """Return it as it answers in place of `other`: within the limits of both.

        Where it has no words and tools of its own it takes those of `other`; its own sampling wins.
        """
        plain = self.system is None and not self.messages and not self.tools
        words = other if plain else self
        most = _least(self.max_tokens, other.max_tokens)
        return replace(
            self,
            max_tokens=most,
            default_max_tokens=min(self.default_max_tokens, most or self.default_max_tokens),
            system=words.system,
            messages=words.messages,
            tools=words.tools,
            sampling={**other.sampling, **self.sampling},
            stop=self.stops(other.stop),
            overflow=other.overflow,
            total_timeout=_least(self.total_timeout, other.total_timeout),
        )

    def compose(self, messages: Messages) -> Messages:
        """Return the whole conversation: system message, this agent's turns, then `messages`."""
        if self.system is None and not self.messages:
            return messages
        leading = 0
        while leading < len(messages) and messages[leading]["role"] in SYSTEM_ROLES:
            leading += 1
        own = any(message["role"] in SYSTEM_ROLES for message in messages)
        system: Messages = () if own or self.system is None else (_system(self.system),)
        return [*system, *messages[:leading], *self.messages, *messages[leading:]]

    def offered(self, tools: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]]:
        """Return the tools to show the model. None: the request said nothing of tools."""
        return self.tools if tools is None else tools

    def params(self, given: Mapping[str, Any]) -> SamplingParams:
        """Return `given` on top of this agent's defaults, on top of the server's."""
        return SamplingParams(**{**self.sampling, **given})

    def stops(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the request's stop strings and this agent's."""
        return tuple(dict.fromkeys((*given, *self.stop)))

    def check_output(self, max_tokens: int | None) -> None:
        """Raise `InvalidRequest` for more output than this agent may write."""
        if self.max_tokens is not None and max_tokens is not None and max_tokens > self.max_tokens:
            raise InvalidRequest(
                f"{self.name!r} writes at most {self.max_tokens} tokens, not {max_tokens}. "
                "Lower max_tokens, or leave it out.",
                param="max_tokens",
            )

    def output(self, max_tokens: int | None, prompt: int) -> int:
        """Tokens to generate after a prompt of so many."""
        return max_tokens or min(self.default_max_tokens, self.n_ctx - prompt)

    def reserve(self, max_tokens: int | None) -> int:
        """Tokens that turns are dropped for, so that an answer of some length fits."""
        return max_tokens or max(1, min(self.default_max_tokens, self.n_ctx // 4))


def _least(one: Number | None, other: Number | None) -> Number | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _system(text: str) -> Mapping[str, Any]:
    return {"role": "system", "content": text}
