"""Render chats as text, exactly as a server does that reads the template from the GGUF."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
NO_THOUGHT = "<think>\n\n</think>\n\n"


def template_source() -> str:
    """The Jinja text that goes into the GGUF."""
    return TEMPLATE_PATH.read_text(encoding="utf-8")


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def _compiled() -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    return environment.from_string(template_source())


def render(
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
) -> str:
    """The prompt for ``messages``; ``enable_thinking=False`` appends the empty thought."""
    extra = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return _compiled().render(
        messages=list(messages),
        tools=list(tools) if tools else None,
        add_generation_prompt=add_generation_prompt,
        **extra,
    )
