"""Tools as requests define them, and whether they are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from server.api.errors import field_path
from server.api.schemas.base import others
from server.core.errors import InvalidRequest
from server.gateway.spec import ToolChoice

MOST_TOOLS = 512
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TOOL = ("type", "function")
_FUNCTION = ("name", "description", "parameters", "strict")

Place = tuple[int | str, ...]


def read_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the definitions without nulls. Raises `InvalidRequest` that names the field."""
    if len(tools) > MOST_TOOLS:
        raise InvalidRequest(
            f"There may be at most {MOST_TOOLS} tools, not {len(tools)}.", param="tools"
        )
    seen: dict[str, int] = {}
    read: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        function = _function(tool, ("tools", number))
        first = seen.setdefault(function["name"], number)
        if first != number:
            raise InvalidRequest(
                f"tools[{first}] has the name {function['name']!r} already.",
                param=field_path(("tools", number, "function", "name")),
            )
        read.append({**tool, "function": function})
    return read


def other_keys(tools: list[dict[str, Any]] | None) -> Iterator[str]:
    """Yield the paths of what a definition has beyond OpenAI's keys: only the template sees it."""
    for number, tool in enumerate(tools or ()):
        yield from others(tool, _TOOL, "tools", number)
        yield from others(tool.get("function"), _FUNCTION, "tools", number, "function")


def _function(tool: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Return the function of a tool, checked."""
    kind = tool.get("type")
    if kind != "function":
        told = f"{kind[:40]!r} cannot be used" if isinstance(kind, str) else "it is missing"
        raise InvalidRequest(
            f'The type of a tool must be "function": {told}.', param=field_path((*place, "type"))
        )
    place = (*place, "function")
    given = tool.get("function")
    if not isinstance(given, Mapping):
        raise InvalidRequest(
            'A tool must be {"type": "function", "function": {"name": …}}.', param=field_path(place)
        )
    function = {key: value for key, value in given.items() if value is not None}
    name = function.get("name")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            "A function needs a name of 1 to 64 letters, digits, _ or -.",
            param=field_path((*place, "name")),
        )
    if not isinstance(function.get("description", ""), str):
        raise InvalidRequest(
            "A description must be text.", param=field_path((*place, "description"))
        )
    if not isinstance(function.get("strict", False), bool):
        raise InvalidRequest(
            "'strict' must be true or false.", param=field_path((*place, "strict"))
        )
    parameters = function.get("parameters", {})
    if not isinstance(parameters, Mapping):
        raise InvalidRequest(
            "Parameters must be a JSON Schema: an object.", param=field_path((*place, "parameters"))
        )
    if parameters.get("type", "object") != "object":
        raise InvalidRequest(
            'Parameters must be a JSON Schema of "type": "object": arguments have names.',
            param=field_path((*place, "parameters", "type")),
        )
    return function


def read_choice(
    given: Any, tools: list[dict[str, Any]] | None, *, parallel: bool | None
) -> ToolChoice:
    """Return whether the request's tools are called. Raises `InvalidRequest`.

    With `tools` None they are the agent's own, which nobody here knows.
    """
    several = parallel is not False
    if given is None:
        return ToolChoice("auto", parallel=several)
    if given == "none":
        return ToolChoice("none", parallel=several)
    if given == "auto":
        return ToolChoice("auto", parallel=several)
    name = None if given == "required" else _chosen(given)
    if tools == []:
        raise InvalidRequest(
            "'tool_choice' asks for a call, but there are no tools.", param="tool_choice"
        )
    if name is None:
        return ToolChoice("required", parallel=several)
    if tools is not None and not any(_name_of(tool) == name for tool in tools):
        raise InvalidRequest(
            f"'tool_choice' names {name[:70]!r}, which is not among the tools.",
            param="tool_choice.function.name",
        )
    return ToolChoice("named", name, several)


def choice_others(given: Any) -> Iterator[str]:
    """Yield the paths of what a choice says without effect."""
    if isinstance(given, Mapping):
        yield from others(given, _TOOL, "tool_choice")
        yield from others(given.get("function"), ("name",), "tool_choice", "function")


def _chosen(given: Any) -> str:
    """Return the name in `{"type": "function", "function": {"name": …}}`."""
    if isinstance(given, Mapping):
        if given.get("type") == "allowed_tools":
            raise InvalidRequest(
                "'tool_choice' cannot be \"allowed_tools\"; send only the tools that may be called.",
                param="tool_choice",
            )
        function = given.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if given.get("type") == "function" and isinstance(name, str):
            return name
    raise InvalidRequest(
        '\'tool_choice\' must be "none", "auto", "required" or '
        '{"type": "function", "function": {"name": …}}.',
        param="tool_choice",
    )


def _name_of(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else None
