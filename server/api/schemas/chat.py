"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from server.api.errors import field_path
from server.api.schemas.common import GenerationFields
from server.core.errors import InvalidRequest
from server.gateway.spec import ChatPrompt


@with_config(ConfigDict(extra="allow", strict=True))
class ChatMessage(TypedDict):
    """One message. Other fields are left to the model's template."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: NotRequired[Any]
    name: NotRequired[str | None]
    tool_calls: NotRequired[list[dict[str, Any]] | None]
    tool_call_id: NotRequired[str | None]
    reasoning_content: NotRequired[str | None]
    reasoning: NotRequired[str | None]


class ChatFields(GenerationFields):
    """What a chat prompt is made of."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def prompt(self) -> ChatPrompt:
        """Return messages with plain text content. Raises `InvalidRequest`."""
        kwargs = dict(self.chat_template_kwargs or {})
        if self.enable_thinking is not None:
            kwargs.setdefault("enable_thinking", self.enable_thinking)
        if self.reasoning_effort is not None:
            kwargs.setdefault("reasoning_effort", self.reasoning_effort)
        messages = [_message(number, message) for number, message in enumerate(self.messages)]
        return ChatPrompt(messages, self._offered_tools(), kwargs)

    def _offered_tools(self) -> list[dict[str, Any]] | None:
        """None where the request says nothing of tools."""
        choice = self.tool_choice
        if choice not in (None, "none", "auto"):
            raise InvalidRequest(
                '\'tool_choice\' can be "auto" or "none": calls cannot be enforced yet.',
                param="tool_choice",
            )
        if choice == "none":
            return []
        if not self.tools:
            return self.tools
        for number, tool in enumerate(self.tools):
            function = tool.get("function")
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise InvalidRequest(
                    'A tool must be {"type": "function", "function": {"name": …}}.',
                    param=field_path(("tools", number)),
                )
        if self.parallel_tool_calls is False:
            raise InvalidRequest(
                "'parallel_tool_calls': false cannot be enforced yet; leave it out.",
                param="parallel_tool_calls",
            )
        return self.tools


class ChatRequest(ChatFields):
    """The body of a chat completion."""

    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Any = None
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

    def check(self) -> None:
        """Raise `InvalidRequest` for forms of output that this server cannot give."""
        form = self.response_format
        if form is not None and not (isinstance(form, Mapping) and form.get("type") == "text"):
            raise InvalidRequest(
                '\'response_format\' can only be {"type": "text"}: constrained output is not '
                "available yet.",
                param="response_format",
            )
        if self.modalities not in (None, ["text"]):
            raise InvalidRequest(
                "'modalities' can only be [\"text\"]: this model writes text only.",
                param="modalities",
            )


def _message(number: int, message: ChatMessage) -> dict[str, Any]:
    """Reduce a message to what templates know: plain content, no nulls, no developer."""
    plain: dict[str, Any] = {key: value for key, value in message.items() if value is not None}
    if plain["role"] == "developer":
        plain["role"] = "system"
    plain["content"] = _content(number, message)
    if "reasoning" in plain:
        plain.setdefault("reasoning_content", plain.pop("reasoning"))
    for place, call in enumerate(plain.get("tool_calls", ())):
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequest(
                "A tool call needs a function with a name.",
                param=field_path(("messages", number, "tool_calls", place)),
            )
    return plain


def _content(number: int, message: ChatMessage) -> str:
    content = message.get("content")
    place: tuple[int | str, ...] = ("messages", number, "content")
    if isinstance(content, str):
        return content
    if content is None:
        if message["role"] == "assistant":
            return ""
        raise InvalidRequest(
            f"The {message['role']} message needs content.", param=field_path(place)
        )
    if not isinstance(content, list):
        raise InvalidRequest(
            "Content must be a string or a list of parts.", param=field_path(place)
        )
    return "".join(_part((*place, index), part) for index, part in enumerate(content))


def _part(place: tuple[int | str, ...], part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if isinstance(text, str):
            return text
        raise InvalidRequest(
            f"The part needs {kind!r} as a string.", param=field_path((*place, kind))
        )
    if isinstance(kind, str):
        raise InvalidRequest(
            f"Parts of type {kind[:40]!r} cannot be used: this model reads text only.",
            param=field_path(place),
        )
    raise InvalidRequest("A content part must be an object with a 'type'.", param=field_path(place))
