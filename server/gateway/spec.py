"""What an API hands to the gateway: a validated request that is not tokenized yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from server.gateway.principal import Principal


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages in the OpenAI form, content already reduced to strings.

    The model's template renders them.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    """None: the request says nothing of tools, so an agent's own are offered; empty: none."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Extra variables for the template, such as `enable_thinking`."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Raw text, as the caller wants the model to see it."""

    text: str
    parse_special: bool = True
    """Whether control tokens in it are read as such; otherwise they stay text."""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids as the caller computed them."""

    tokens: Sequence[int]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class OutputForm:
    """What an answer must look like, as the request says it; not compiled yet."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark", "gbnf"]
    value: Any
    """The schema as a JSON value, the expression or grammar as text, or the choices; None for `json_object`."""
    param: str
    """The request's field that it comes from: errors name it."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None
    """The one to call, where `mode` is `named`."""
    parallel: bool = True
    """Whether one answer may have several calls."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A request in the OpenAI form, for a server that takes no other."""

    path: str
    """`chat/completions` or `completions`."""
    document: Callable[[], dict[str, Any]]
    """Makes a copy of the body as the client sent it, checked already."""


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """One API request: `n` choices for each prompt, numbered prompt by prompt."""

    request_id: str
    """Unique in this process: names the sequences in the engine."""
    model: str | None
    """None asks for the first model, whatever its name."""
    prompts: Sequence[Prompt]
    """One for chat; legacy completions may have several."""
    max_tokens: int | None = None
    """None: the agent's default, or what remains of its `n_ctx` if that is less."""
    n: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """What the request said, by `SamplingParams`' names; the rest is the agent's to say."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    reuse_prefix: bool = True
    principal: Principal = field(default_factory=Principal)
    """Whose request it is."""
    seconds: float | None = None
    """Time that its client gives it, from now to the end of the answer; None: not said."""
    fingerprint: bytes = b""
    """Equal for requests that say the same, whoever sends them; empty where there is no body."""
    fallback: bool = True
    """Whether another model may answer where this one cannot."""
    output: OutputForm | None = None
    """None: any text."""
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    thinking_budget: int | None = None
    """Most tokens of reasoning, the markers not counted; None: no limit of its own."""
    strict: bool = False
    """Whether what the model's template would not look at is refused."""
    forward: Forward | None = None
    """The request for a remote; None: it has no form that a remote knows."""
