"""What Ollama hands to its templates, and how each value is read, judged and written in Jinja.

Every value has a kind, so that nothing is written or compared otherwise than Go would. Source of
the fields: github.com/ollama/ollama, docs/template.mdx and template/template.go.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.catalog.modelfile.go_tree import GoTemplateError

_COMPACT = "tojson(separators=(',', ':'))"


@dataclass(frozen=True, slots=True)
class Value:
    """A Jinja expression that binds tighter than any operator, and what it is."""

    code: str
    kind: str


# `@` stands for the value that has the field.
_FIELDS: dict[str, dict[str, tuple[str, str]]] = {
    "message": {
        "Role": ("@['role']", "string"),
        "Content": ("@['content']", "string"),
        "Thinking": ("@['thinking']", "string"),
        "ToolCalls": ("@['calls']", "calls"),
        "ToolName": ("@['name']", "string"),
        "ToolCallID": ("@['call_id']", "string"),
    },
    "call": {
        "ID": ("(@['id']|default('', true))", "string"),
        "Function": ("@['function']", "called function"),
    },
    "called function": {
        "Name": ("@['name']", "string"),
        "Arguments": ("(@['arguments']|default({}, true))", "arguments"),
    },
    "tool": {
        "Type": ("@['type']", "string"),
        "Function": ("@['function']", "function"),
    },
    "function": {
        "Name": ("@['name']", "string"),
        "Description": ("(@['description']|default('', true))", "string"),
        "Parameters": ("(@['parameters']|default({}, true))", "parameters"),
    },
    "parameters": {
        "Type": ("(@['type']|default('object', true))", "string"),
        "Required": ("(@['required']|default([], true))", "strings"),
        "Properties": ("(@['properties']|default({}, true))", "properties"),
    },
    "property": {
        "Type": ("(@['type']|default('', true))", "type"),
        "Description": ("(@['description']|default('', true))", "string"),
        "Enum": ("(@['enum']|default([], true))", "list"),
    },
}
ELEMENTS = {
    "messages": "message",
    "calls": "call",
    "tools": "tool",
    "strings": "string",
    "list": "any",
}
"""Kinds of lists → kind of their elements."""
MAPS = {"arguments": "any", "properties": "property"}
"""Kinds of maps → kind of their values."""
_AS_JSON = ("tools", "tool", "function", "parameters", "properties", "property", "list")
_STRUCTS = ("message", "call", "called function", "tool", "function", "parameters", "property")
_ORDERED = ("string", "int", "any")


def literal(text: str) -> str:
    """Return `text` as a Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return "'" + escaped.replace("\r", "\\r").replace("\t", "\\t") + "'"


def field(value: Value, name: str, offset: int) -> Value:
    """Return a field of `value`. Raises `GoTemplateError` for one that it does not have."""
    known = _FIELDS.get(value.kind, {})
    if name not in known:
        has = f" It has {', '.join('.' + each for each in known)}." if known else ""
        raise GoTemplateError(offset, f".{name} is not known of a {value.kind} here.{has}")
    code, kind = known[name]
    return Value(code.replace("@", value.code), kind)


def written(value: Value, offset: int) -> str:
    """Return an expression for the text that Go would write."""
    code, kind = value.code, value.kind
    if kind in ("string", "int"):
        return code
    if kind == "bool":
        return f"('true' if {code} else 'false')"
    if kind in ("arguments", "any"):
        # Clients send arguments as the text that the model wrote; that is JSON already.
        return f"({code} if {code} is string else {code}|{_COMPACT})"
    if kind == "type":
        return f"({code} if {code} is string else '[' ~ {code}|join(' ') ~ ']')"
    if kind == "strings":
        return f"('[' ~ {code}|join(' ') ~ ']')"
    if kind in _AS_JSON:
        return f"({code}|{_COMPACT})"
    raise GoTemplateError(offset, f"a {kind} cannot be written as text.")


def as_json(value: Value, offset: int) -> Value:
    """Return what the function `json` makes of `value`."""
    if value.kind == "arguments":
        return Value(written(value, offset), "string")
    if value.kind in ("string", "int", "bool", "any", "strings", *_AS_JSON):
        return Value(f"({value.code}|{_COMPACT})", "string")
    raise GoTemplateError(offset, f"a {value.kind} cannot be written as JSON.")


def judged(value: Value) -> str:
    """Return an expression that is true when Go would take `value` as true."""
    if value.kind in _STRUCTS:
        return "true"
    if value.kind == "arguments":
        return f"({value.code} not in ('', '{{}}', {{}}))"
    return value.code


def same_kind(left: Value, right: Value, operator: str, offset: int) -> None:
    """Raise `GoTemplateError` unless Go could compare the two."""
    order = operator not in ("==", "!=")
    kinds = {left.kind, right.kind}
    allowed = _ORDERED if order else (*_ORDERED, "bool", "type")
    if not kinds <= set(allowed) or (len(kinds) > 1 and not kinds & {"any", "type"}):
        message = f"a {left.kind} and a {right.kind} cannot be compared."
        raise GoTemplateError(offset, message)
