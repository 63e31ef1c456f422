"""Chat templates: Jinja sources from GGUF files, rendered in a sandbox and tokenized."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.chat.guard import Guard
from server.core.errors import InvalidRequest, ModelFileError
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

_PROBE = "probe_of_tools"

Message = Mapping[str, Any]


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
        marks = [text for text in tokenizer.marker_tokens if _is_structure(text, source or "")]
        self._guard = Guard(tokenizer, marks)
        self._names = {
            "add_bos_token": _adds_bos(tokenizer),
            "bos_token": tokenizer.bos_text,
            "eos_token": tokenizer.eos_text,
        }
        self._template = None if source is None else _compile(source, now)
        self._objects = False  # while it is found out
        self._objects = self._template is not None and self._wants_objects()
        self.variables = _variables(self._template, source)
        """Names that the template looks for, such as `enable_thinking`."""
        self.takes_tools = "tools" in self.variables and self._shows_tools()
        """Whether it tells the model about tools."""
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
        try:
            names = {
                "add_generation_prompt": True,
                **self._names,
                **protect(kwargs, markers=True),
                "messages": [
                    protect(self._adapt(message), markers=message.get("role") != "assistant")
                    for message in messages
                ],
                "tools": protect(tools, markers=True) if tools else None,
            }
            return self._template.render(names)
        except InvalidRequest:
            raise
        except RecursionError as error:
            raise InvalidRequest("The messages are nested too deep.", param="messages") from error
        except Exception as error:
            # Templates raise whatever Python raises for messages they were not written for.
            raise InvalidRequest(
                f"The model's chat template does not accept these messages: {error}",
                param="messages",
            ) from error

    def _adapt(self, message: Message) -> Message:
        """Give arguments of tool calls the form that the template expects."""
        calls = message.get("tool_calls")
        if not self._objects or not calls:
            return message
        return {**message, "tool_calls": [_with_object_arguments(call) for call in calls]}

    def _wants_objects(self) -> bool:
        """Tell whether the template writes arguments given as a string wrongly, as most do.

        Where both forms come out alike the string is better: it is what the model wrote.
        """
        text = '{"key": "value"}'
        try:
            as_text = self._show_arguments(text)
        except InvalidRequest:
            return True
        try:
            as_object = self._show_arguments(json.loads(text))
        except InvalidRequest:
            return text not in as_text
        written_as_python = str(json.loads(text)) in as_object
        return text not in as_text or not (as_text == as_object or written_as_python)

    def _show_arguments(self, arguments: Any) -> str:
        function = {"name": "probe", "arguments": arguments}
        call = {"id": "call00001", "type": "function", "function": function}
        user = {"role": "user", "content": "probe"}
        return self.render([user, {"role": "assistant", "content": "", "tool_calls": [call]}])

    def _shows_tools(self) -> bool:
        user, system = ({"role": role, "content": "probe"} for role in ("user", "system"))
        schema = {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}}
        function = {"name": _PROBE, "description": "probe", "parameters": schema}
        for messages in ([user], [system, user]):
            with contextlib.suppress(InvalidRequest):
                if _PROBE in self.render(messages, [{"type": "function", "function": function}]):
                    return True
        return False


class _Generation(Extension):
    """`{% generation %}` marks training targets; for serving it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body as it stands."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str, now: Callable[[], datetime]) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
        autoescape=False,
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelFileError(f"The model's chat template does not compile: {error}") from error


def _variables(template: jinja2.Template | None, source: str | None) -> frozenset[str]:
    if template is None or source is None:
        return frozenset()
    return frozenset(meta.find_undeclared_variables(template.environment.parse(source)))


def _tojson(
    value: Any,
    indent: int | None = None,
    *,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    **_: Any,
) -> str:
    """Like transformers' filter. Never escapes beyond JSON: placeholders must survive."""
    return json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        indent=indent,
        separators=(separators[0], separators[1]) if separators else None,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


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


def _with_object_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        # Some clients leave the text empty where a call has no arguments.
        arguments = json.loads(function["arguments"].strip() or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
