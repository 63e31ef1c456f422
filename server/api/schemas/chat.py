"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from server.api.schemas.common import Count, GenerationFields
from server.api.schemas.messages import (
    ChatMessage,
    message_others,
    part_others,
    plain_messages,
)
from server.api.schemas.output import top
from server.api.schemas.tools import choice_others, other_keys, read_choice, read_tools
from server.core.errors import InvalidRequest
from server.gateway.spec import ChatPrompt, OutputForm, ToolChoice

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_BESIDE_TOOLS = ("json_object", "json_schema")
"""Forms that an answer may have where it could be calls, too."""


class ChatFields(GenerationFields):
    """What a chat prompt is made of."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def prompt(self) -> ChatPrompt:
        """Return messages with plain text content, and the tools to show. Raises `InvalidRequest`."""
        messages = plain_messages(self.messages)
        tools = None if self.tools is None else read_tools(self.tools)
        # Where the answer can be no call, the agent's tools are not shown either.
        form = self.output()
        alone = tools is None and form is not None and form.kind not in _BESIDE_TOOLS
        silent = alone or self.choice().mode == "none"
        return ChatPrompt(messages, [] if silent else tools, self._template_kwargs())

    def choice(self) -> ToolChoice:
        """Return whether tools are called. Raises `InvalidRequest`."""
        return read_choice(self.tool_choice, self.tools, parallel=self.parallel_tool_calls)

    def output(self) -> OutputForm | None:
        """Return what the answer must look like. Raises `InvalidRequest`, for calls beside it, too."""
        form = super().output()
        mode = self.choice().mode
        if form is None or mode == "none":
            return form
        if mode != "auto" or (self.tools and form.kind not in _BESIDE_TOOLS):
            name = top(form.param)
            raise InvalidRequest(
                f"{name!r} cannot be combined with tools that may be called: send "
                "'tool_choice': \"none\", or leave one of them out.",
                param=name,
            )
        return form

    def unused(self) -> list[str]:
        """Return the paths within fields that have no effect."""
        names = super().unused()
        return [*names, *choice_others(self.tool_choice), *part_others(self.messages)]

    def unchecked(self) -> Iterator[str]:
        """Yield the paths of what only the model's template sees, if anybody."""
        yield from message_others(self.messages)
        yield from other_keys(self.tools)

    def _template_kwargs(self) -> dict[str, Any]:
        kwargs = dict(self.chat_template_kwargs or {})
        for name in ("enable_thinking", "reasoning_effort"):
            value = getattr(self, name)
            if value is not None and kwargs.setdefault(name, value) != value:
                raise InvalidRequest(
                    f"{name!r} and 'chat_template_kwargs' differ about it; send one.", param=name
                )
        return kwargs


class ChatRequest(ChatFields):
    """The body of a chat completion."""

    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    thinking_token_budget: Count | None = None
    thinking_budget: Count | None = None
    modalities: list[str] | None = None

    def output_limit(self) -> int | None:
        """Return the most tokens to generate. Raises `InvalidRequest` for two opinions."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise InvalidRequest(
                f"'max_tokens' ({old}) and 'max_completion_tokens' ({new}) differ; send one.",
                param="max_completion_tokens",
            )
        return old if new is None else new

    def top(self) -> int | None:
        """How many alternatives to report for each token; None for no log-probabilities."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def thinking(self) -> int | None:
        """Return the most tokens of reasoning. Raises `InvalidRequest` for two opinions."""
        one, other = self.thinking_token_budget, self.thinking_budget
        if one is not None and other is not None and one != other:
            raise InvalidRequest(
                f"'thinking_token_budget' ({one}) and 'thinking_budget' ({other}) differ; send one.",
                param="thinking_budget",
            )
        return other if one is None else one

    def check(self) -> None:
        """Raise `InvalidRequest` for forms of output that this server cannot give."""
        if self.modalities not in (None, ["text"]):
            raise InvalidRequest(
                "'modalities' can only be [\"text\"]: this model writes text only.",
                param="modalities",
            )
