"""Chat templates: Jinja sources from GGUF files, rendered in a sandbox and tokenized."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from server.chat.abilities import Abilities, Message, find_abilities
from server.chat.calls import find_form
from server.chat.environment import CompiledTemplate, TooMuchError
from server.chat.guard import Guard
from server.core.errors import InvalidRequest
from server.engine.interface import Tokenizer

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""Used when a file has no template but its vocabulary has ChatML's tokens."""

RESERVED = frozenset(
    {
        "messages",
        "tools",
        "add_bos_token",
        "bos_token",
        "eos_token",
        "raise_exception",
        "strftime_now",
        "namespace",
        "range",
        "dict",
        "lipsum",
        "cycler",
        "joiner",
    }
)
"""Names that `chat_template_kwargs` may not replace."""

_STRUCTURE = tuple(
    f"<{slash}{name}>" for name in ("think", "tool_call", "tool_response") for slash in ("", "/")
)

_DROPPED = {
    "system": "a system message",
    "late_system": "a system message that is not the first",
    "tool": "the result of a tool",
    "function": "the result of a function",
    "tool_calls": "a tool call",
    "calls_beside_content": "a tool call beside content",
}

_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning; templates look for one of the first two."""


class ChatTemplate:
    """A compiled template together with the vocabulary that it writes for. For any thread."""

    def __init__(
        self,
        source: str | None,
        tokenizer: Tokenizer,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Compile `source`. Raises `ModelFileError` when it is not a valid template."""
        if source is None and "<|im_start|>" in tokenizer.control_tokens:
            source = CHATML
        self.source = source
        self.form = find_form(source)
        """How it writes calls; None: in none of the known forms."""
        marks = [text for text in tokenizer.marker_tokens if _is_structure(text, source or "")]
        self._guard = Guard(tokenizer, marks)
        self._names = {
            "add_bos_token": _adds_bos(tokenizer),
            "bos_token": tokenizer.bos_text,
            "eos_token": tokenizer.eos_text,
        }
        self._template = None if source is None else CompiledTemplate(source, now)
        self.abilities = Abilities()  # while they are found out
        if self._template is not None:
            self.abilities = find_abilities(self._plain)
        self.takes_tools = self.abilities.tools
        """Whether it tells the model about tools."""
        self.shows_names = self.abilities.names
        """Whether it tells the model the `name` of who speaks."""
        self.variables = self._template.variables if self._template else frozenset[str]()
        """Names that the template looks for, such as `enable_thinking`."""
        self.thinks = any(mark in (source or "") for mark in ("<think>", "</think>"))
        """Whether it knows of thoughts between `<think>` and `</think>`."""

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        check: Callable[[str], None] | None = None,
    ) -> list[int]:
        """Token ids of the prompt. Raises `InvalidRequest` with the template's own message.

        `check` is given the rendered text before it is tokenized, and may raise.
        """
        protection = self._guard.begin()
        rendered = self._render(protection.protect, messages, tools, kwargs or {})
        if check is not None:
            check(rendered)
        return protection.encode(rendered)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt as text. Raises as `encode` does."""
        protection = self._guard.begin()
        return protection.reveal(self._render(protection.protect, messages, tools, kwargs or {}))

    def _render(
        self,
        protect: Callable[..., Any],
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any],
    ) -> str:
        if self._template is None:
            raise InvalidRequest(
                "This model has no chat template; use /v1/completions.", param="messages"
            )
        if taken := RESERVED & kwargs.keys():
            raise InvalidRequest(
                f"The template variable {min(taken)!r} cannot be set.",
                param="chat_template_kwargs",
            )
        adapted = [self._adapt(message, first=n == 0) for n, message in enumerate(messages)]
        return self._fill(protect, adapted, tools, kwargs)

    def _fill(
        self,
        protect: Callable[..., Any],
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any],
    ) -> str:
        assert self._template is not None  # noqa: S101
        try:
            names = {
                "add_generation_prompt": True,
                "documents": None,
                **self._names,
                **protect(kwargs, markers=True),
                "messages": [_protected(protect, message) for message in messages],
                "tools": protect(tools, markers=True) if tools else None,
            }
            return self._template.render(names)
        except InvalidRequest:
            raise
        except RecursionError as error:
            raise InvalidRequest("The messages are nested too deep.", param="messages") from error
        except TooMuchError as error:
            raise InvalidRequest(
                f"These messages are too much for the model's chat template: {error}.",
                param="messages",
            ) from error
        except Exception as error:
            # Templates raise whatever Python raises for messages they were not written for.
            raise InvalidRequest(
                f"The model's chat template does not accept these messages: {error}",
                param="messages",
            ) from error

    def _plain(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str:
        protection = self._guard.begin()
        return protection.reveal(self._fill(protection.protect, messages, tools, {}))

    def _adapt(self, message: Message, *, first: bool) -> Message:
        """Give a message the form that the template expects; refuse what it would leave out."""
        calls = message.get("tool_calls")
        there = {message.get("role")}
        if not first and message.get("role") == "system":
            there.add("late_system")
        if calls:
            there |= {"tool_calls", "calls_beside_content" if message.get("content") else None}
        if dropped := self.abilities.drops & there:
            raise InvalidRequest(
                f"The model's chat template has no place for {_DROPPED[min(dropped)]}: the model "
                "would not see it.",
                param="messages",
            )
        adapted = dict(message)
        thoughts = (message[name] for name in _THOUGHTS if message.get(name) is not None)
        if (reasoning := next(thoughts, None)) is not None:
            adapted = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        if calls:
            objects = self.abilities.objects
            adapted["tool_calls"] = [_with_arguments(call, objects=objects) for call in calls]
        if calls and not message.get("content"):
            adapted["content"] = self.abilities.no_content
        return adapted


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Tell whether the vocabulary begins every text with BOS.

    Templates in GGUF files write it themselves; those converted from Go leave it to this.
    """
    added = tokenizer.encode("", add_special=True)[:1]
    text = tokenizer.bos_text.encode()
    return bool(added) and text != b"" and tokenizer.decode(added, special=True) == text


def _is_structure(marker: str, source: str) -> bool:
    """Tell markers of a dialogue's structure from user-defined tokens that are plain text.

    Some vocabularies define runs of white space and HTML tags; hiding those would only cost.
    """
    return marker.strip() != "" and (
        marker.startswith("<|") or marker in _STRUCTURE or (len(marker) > 2 and marker in source)
    )


def _protected(protect: Callable[..., Any], message: Message) -> dict[str, Any]:
    """Templates look for markers in an answer's content, and nowhere else: there they may stay."""
    hidden: dict[str, Any] = protect(
        {name: value for name, value in message.items() if name != "content"}, markers=True
    )
    if "content" in message:
        markers = message.get("role") != "assistant"
        hidden["content"] = protect(message["content"], markers=markers)
    return hidden


def _with_arguments(call: Any, *, objects: bool) -> Any:
    """Give a call's arguments as an object, if they are one, or as text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if isinstance(arguments, str) and not arguments.strip():
        arguments = "{}"  # what some clients make of a call without arguments
    try:
        if objects and isinstance(arguments, str):
            arguments = json.loads(arguments)
        elif not objects and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
    except ValueError:
        return call
    except RecursionError as error:
        raise InvalidRequest(
            "The arguments of a tool call are nested too deep.", param="messages"
        ) from error
    return {**call, "function": {**function, "arguments": arguments}}
