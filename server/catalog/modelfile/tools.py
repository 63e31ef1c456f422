"""TOOLS: OpenAI tool definitions, from a JSON file beside the Modelfile or written into it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.catalog.modelfile.syntax import Instruction, Source, decode, nearest

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FUNCTION_KEYS = ("name", "description", "parameters", "strict")


def read_tools(source: Source, line: Instruction, folder: Path) -> list[Mapping[str, Any]]:
    """Return the definitions of one TOOLS instruction. Raises `ConfigError` with the place."""
    if line.value.lstrip().startswith(("[", "{")):
        return _parsed(source, line.value_offset, line.value)
    path = folder / Path(line.value).expanduser()
    try:
        text = decode(path.read_bytes(), str(path))
    except OSError as error:
        message = (
            f"TOOLS cannot be read from {path}: {error.strerror}. Name a JSON file beside the "
            'Modelfile, or write the JSON itself between """ and """.'
        )
        raise source.fail(line.value_offset, message) from error
    listed = Source(text, str(path))
    return _parsed(listed, 0, listed.text)


def _parsed(source: Source, offset: int, text: str) -> list[Mapping[str, Any]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise source.fail(offset + error.pos, f"not JSON: {error.msg}.") from error
    except RecursionError as error:
        raise source.fail(offset, "the JSON is nested too deep.") from error
    tools = value if isinstance(value, list) else [value]
    start = offset + len(text) - len(text.lstrip())
    for number, tool in enumerate(tools):
        if problem := _problem(tool):
            raise source.fail(start, f"tool {number + 1} {problem}")
    return tools


def unique(source: Source, line: Instruction, tools: list[Mapping[str, Any]]) -> None:
    """Raise `ConfigError` when two tools have one name."""
    names = [tool["function"]["name"] for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise source.fail(line.offset, f"there are two tools with the name {name!r}.")


def _problem(tool: Any) -> str | None:
    """Say what is wrong with a definition, None when nothing is."""
    if not isinstance(tool, dict):
        return f"is not an object but {json.dumps(tool)[:40]}."
    if "function" not in tool and "name" in tool:
        return (
            'is a bare function. Wrap it: {"type": "function", "function": {"name": …, "description": '
            '…, "parameters": {…}}}.'
        )
    for key in tool:
        if key not in ("type", "function"):
            return f"has an unknown key {key!r}{nearest(key, ('type', 'function')) or '.'}"
    if tool.get("type") != "function":
        return 'must have "type": "function".'
    function = tool.get("function")
    if not isinstance(function, dict):
        return 'must have an object as "function".'
    return _function_problem(function)


def _function_problem(function: Mapping[str, Any]) -> str | None:
    name = function.get("name")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        return f"must have a name of 1 to 64 letters, digits, _ or -, not {json.dumps(name)[:70]}."
    for key in function:
        if key not in _FUNCTION_KEYS:
            return f"({name}) has an unknown key {key!r}{nearest(key, _FUNCTION_KEYS) or '.'}"
    if not isinstance(function.get("description", ""), str):
        return f"({name}) must have text as its description."
    if not isinstance(function.get("strict", False), bool):
        return f'({name}) must have true or false as "strict".'
    return _schema_problem(name, function.get("parameters", {}))


def _schema_problem(name: str, schema: Any) -> str | None:
    """Check what a JSON schema of arguments must have; its depths are the model's to read."""
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return f'({name}) must have a JSON schema of "type": "object" as its parameters.'
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or not all(
        isinstance(value, dict | bool) for value in properties.values()
    ):
        return f'({name}) must have an object of JSON schemas as "properties".'
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(item, str) for item in required):
        return f'({name}) must have a list of names as "required".'
    if properties and (missing := [item for item in required if item not in properties]):
        return f"({name}) requires {missing[0]!r}, which is not among its properties."
    return None
