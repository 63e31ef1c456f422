"""What a chat template can do, found out by rendering made-up conversations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.core.errors import InvalidRequest

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]] | None], str]
"""Messages and tools to text; raises `InvalidRequest` where the template does not accept them."""

_SYSTEM = {"role": "system", "content": "probe_of_system"}
_USER = {"role": "user", "content": "probe_of_user"}
_SCHEMA = {"type": "object", "properties": {"key": {"type": "string", "description": "a key"}}}
_TOOL = {"name": "probe_of_tools", "description": "a probe", "parameters": _SCHEMA}
_TOOLS = [{"type": "function", "function": _TOOL}]
_OBJECT = {"key": "probe_of_call"}
_TEXT = json.dumps(_OBJECT)
_DENSE = json.dumps(_OBJECT, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Abilities:
    """Facts about a template."""

    tools: bool = False
    """It tells the model about tools."""
    drops: frozenset[str] = frozenset()
    """What it leaves out without an error: messages of the roles `system`, `tool` and `function`,
    system messages that are not the first (`late_system`), `tool_calls`, or these only beside
    content (`calls_beside_content`)."""
    calls: bool = False
    """It writes the calls of earlier answers."""
    calls_together: bool = False
    """It accepts several calls in one message."""
    objects: bool = False
    """Arguments of calls must be objects: as text they come out wrong, or worse."""
    no_content: str | None = ""
    """The content to give to a message that has calls only."""
    names: bool = False
    """It shows a user message's `name`."""


def find_abilities(render: Render) -> Abilities:
    """Try a template out."""
    no_content = _no_content(render)
    drops = set()
    if _shows(render, "probe_of_system", [_SYSTEM, _USER]) is False:
        drops.add("system")
    if _shows(render, "probe_of_system", [_USER, _SYSTEM, _USER]) is False:
        drops.add("late_system")
    calls = _shows(render, "probe_of_call", *_calls(no_content))
    if calls is False:
        drops.add("tool_calls")
    elif _shows(render, "probe_of_call", *_calls("probe_of_content")) is False:
        drops.add("calls_beside_content")
    for role in ("tool", "function"):
        if _shows(render, "probe_of_result", *_results(no_content, role)) is False:
            drops.add(role)
    return Abilities(
        tools=bool(_shows(render, "probe_of_tools", [_USER], [_SYSTEM, _USER])),
        drops=frozenset(drops),
        calls=bool(calls),
        calls_together=bool(_shows(render, "probe_of_call", *_calls(no_content, number=2))),
        objects=_wants_objects(render, no_content),
        no_content=no_content,
        names=bool(_shows(render, "probe_of_name", [{**_USER, "name": "probe_of_name"}])),
    )


def _call(content: str | None, arguments: Any, number: int = 1) -> list[Message]:
    function = {"name": "probe_of_call", "arguments": arguments}
    calls = [
        {"id": f"call0000{place}", "type": "function", "function": function}
        for place in range(number)
    ]
    return [_USER, {"role": "assistant", "content": content, "tool_calls": calls}]


def _results(content: str | None, role: str, number: int = 1) -> list[list[Message]]:
    results = [
        {
            "role": role,
            "tool_call_id": f"call0000{place}",
            "name": "probe_of_call",
            "content": "probe_of_result",
        }
        for place in range(number)
    ]
    return [[*_call(content, arguments, number), *results] for arguments in (_OBJECT, _TEXT)]


def _calls(content: str | None, number: int = 1) -> list[list[Message]]:
    """Some templates write calls only where something follows."""
    return [
        *_results(content, "tool", number),
        *(_call(content, arguments, number) for arguments in (_OBJECT, _TEXT)),
    ]


def _shows(render: Render, text: str, *conversations: Sequence[Message]) -> bool | None:
    """Whether `text` is in what becomes of a conversation; None if each of them is refused."""
    shown = None
    for messages in conversations:
        rendered = _try(render, messages)
        if rendered is not None:
            shown = bool(shown) or text in rendered
    return shown


def _no_content(render: Render) -> str | None:
    """Some templates see calls only in a message without content; most cannot do without."""
    for content in ("", None):
        if _shows(render, "probe_of_call", *_calls(content)):
            return content
    return ""


def _wants_objects(render: Render, content: str | None) -> bool:
    """Where text and object come out alike, but for spaces, text is better: the model wrote it."""
    as_object, as_text, object_last, text_last = (
        _try(render, messages) for messages in _calls(content)
    )
    if as_text is None and as_object is None:
        as_text, as_object = text_last, object_last
    if as_text is None or _TEXT not in as_text:
        return True
    alike = (None, as_text, as_text.replace(_TEXT, _DENSE))
    return as_object not in alike and str(_OBJECT) not in as_object


def _try(render: Render, messages: Sequence[Message]) -> str | None:
    """With tools, for some templates need them, or else without, for some refuse them."""
    for tools in (_TOOLS, None):
        with contextlib.suppress(InvalidRequest):
            return render(messages, tools)
    return None
