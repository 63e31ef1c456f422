"""Lark for calls in which every parameter has a tag: values of string type stand there as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from server.chat.forms.argument_types import (
    STRING,
    chosen_tools,
    parameter_types,
    parameters_of,
    resolved,
    types_of,
)
from server.chat.forms.lark import calls_grammar, literal, matching, param_of
from server.chat.json_schema import check_schema
from server.chat.json_schema.bounds import kind_of
from server.chat.reply import Tool
from server.core.errors import InvalidRequest

PARAMETER_END = "</parameter>"
_END = f"\n{PARAMETER_END}\n"
_IN_OBJECT = {"type", "properties", "required", "additionalProperties", "$defs", "x-guidance"}
_DEEPEST = 20
_MOST_PARTS = 2_000
"""Of one tool's schema, those that are referred to counted each time."""
_MOST_NAMES = 128 * 1024
"""Characters for the parameters of tools that are not enforced. Beyond it their names are not told apart."""
_ANY_PARAMETERS = r'("<parameter=" /[^<> \t\r\n]+/ ">\n" free NL)*'
_NOT_THE_END = r"~/(?s:.*)<\/parameter>(?s:.*)/"
# Texts that are read as another type, where a parameter may be of that type, too. Of numbers, objects
# and arrays all that begins like one: the lexer has to know from the first character on.
_READ_AS = {
    "null": r"(null|None)[ \t\r\n]*",
    "boolean": r"(true|false|True|False)[ \t\r\n]*",
    "number": r"-?[0-9](?s:.*)",
    "object": r"\{(?s:.*)",
    "array": r"\[(?s:.*)",
}
_WORDS = {"null": None, "true": True, "false": False}


def functions_grammar(
    tools: Sequence[Tool],
    *,
    special: Container[str],
    enforce: Callable[[Tool], bool],
    many: bool,
    only: str | None,
) -> str:
    """Return the grammar of calls.

    Raises `InvalidRequest` where a schema is to be enforced and says what cannot be in this form.
    """
    chosen = chosen_tools(tools, only)
    texts: dict[str, str] = {}
    bound = {index for index, tool in chosen if enforce(tool)}
    free = {index: _free(parameters_of(tool)) for index, tool in chosen if index not in bound}
    if sum(map(len, free.values())) > _MOST_NAMES:
        free = dict.fromkeys(free, _ANY_PARAMETERS)

    def bodies() -> Iterator[str]:
        for index, tool in chosen:
            inner = free.get(index)
            if inner is None:
                inner = _Enforced(parameters_of(tool), param_of(index), texts).rule()
            opening = literal(f"<function={tool['function']['name']}>\n")
            yield f'{opening} {inner} "</function>"'

    lines = calls_grammar(chosen, bodies(), special=special, many=many)
    lines += [f"{name}: {text}" for text, name in texts.items()]
    return "\n".join([*lines, r"free[lazy]: /(?s:.*)<\/parameter>/"])


def _free(parameters: Mapping[str, Any]) -> str:
    """Parameters of the schema's names, or of any, in any order; their values are any text."""
    names = [name for name in parameters.get("properties") or () if _is_writable(name)]
    tags = " | ".join(literal(_opening(name)) for name in names)
    return f"(({tags}) free NL)*" if tags else _ANY_PARAMETERS


class _Enforced:
    """The parameters of one tool in the schema's order, the required ones in any case."""

    def __init__(self, parameters: Mapping[str, Any], param: str, texts: dict[str, str]) -> None:
        """`texts`: terminals by what they match; those that are needed are added."""
        self._parameters = parameters
        self._root = json.loads(check_schema(parameters, param))
        self._param = param
        self._texts = texts
        self._left = _MOST_PARTS

    def rule(self) -> str:
        """Return what stands between the function's tags."""
        schema = self._root
        if "$ref" in schema:
            told = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**resolved(schema["$ref"], self._root), **told}
        if unknown := schema.keys() - _IN_OBJECT:
            raise self._refusal(f"what the schema says with {min(unknown)!r}")
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        if undescribed := set(required) - properties.keys():
            raise self._refusal(f"{min(undescribed)!r}, which is required and not in 'properties'")
        pieces = []
        for name, inner in properties.items():
            if inner is False and name not in required:
                continue
            if inner is False or not _is_writable(name):
                raise self._refusal(f"the parameter {name!r}")
            piece = f"{literal(_opening(name))} ({self._value(name, inner)})"
            pieces.append(piece if name in required else f"({piece})?")
        return " ".join(pieces)

    def _value(self, name: str, schema: Any) -> str:
        """Return a parameter's text, its closing tag included: a string as it is, or JSON."""
        types = parameter_types(self._parameters, name)
        others = types - STRING
        if schema is True or not schema or (types == STRING and schema == {"type": "string"}):
            return "free NL"
        if "string" not in types:
            return self._json(schema)
        excluded = [f"~/[ \\t\\r\\n]*{_READ_AS[other]}/" for other in sorted(others)]
        terms = ["/(?s:.*)/", *self._terms(schema, 0), *excluded, _NOT_THE_END]
        text = f"({' & '.join(terms)}) {literal(_END)}"
        ways = [self._texts.setdefault(text, f"TEXT_{len(self._texts)}")]
        ways += [
            literal(word + _END) for word, value in _WORDS.items() if self._admits(schema, value)
        ]
        if begun := sorted(others - {"null", "boolean"}):
            ways.append(self._json({"allOf": [schema, {"type": begun}]}))
        return " | ".join(ways)

    def _admits(self, schema: Any, value: Any, depth: int = 0) -> bool:
        """Tell whether `schema` admits null, true or false, of which it can say little."""
        self._read_one(depth)
        if isinstance(schema, bool):
            return schema
        types = schema.get("type", kind_of(value))
        values = [schema["const"]] if "const" in schema else schema.get("enum", [value])
        parts = [*schema.get("allOf", ())]
        if "$ref" in schema:
            parts.append(resolved(schema["$ref"], self._root))
        ways = schema.get("anyOf", [True])
        return (
            kind_of(value) in ([types] if isinstance(types, str) else types)
            and any(each is value for each in values)
            and all(self._admits(part, value, depth + 1) for part in parts)
            and any(self._admits(way, value, depth + 1) for way in ways)
        )

    def _terms(self, schema: Any, depth: int) -> list[str]:
        """Return terminals whose intersection are the strings that `schema` admits."""
        self._read_one(depth)
        if not isinstance(schema, Mapping):
            return []
        terms = []
        if "minLength" in schema or "maxLength" in schema:
            bounds = f"{schema.get('minLength', 0)},{schema.get('maxLength', '')}"
            terms.append(f"/(?s:.){{{bounds}}}/")
        if "pattern" in schema:
            terms.append(matching(schema["pattern"]))
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            terms.append(self._one_of([value for value in values if isinstance(value, str)]))
        if "$ref" in schema:
            terms += self._terms(resolved(schema["$ref"], self._root), depth + 1)
        for part in schema.get("allOf", ()):
            terms += self._terms(part, depth + 1)
        if "anyOf" in schema:
            ways = [part for part in schema["anyOf"] if "string" in types_of(part, self._root)]
            either = [" & ".join(self._terms(part, depth + 1)) for part in ways]
            if all(either):
                terms.append(f"({' | '.join(either)})")
        return terms

    def _read_one(self, depth: int) -> None:
        """Count a part that is read: what is referred to is, each time."""
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise self._refusal("a schema of such depth or so many parts")

    def _one_of(self, values: Sequence[str]) -> str:
        for value in values:
            if PARAMETER_END in value:
                raise self._refusal(f"the value {value!r}")
        # Nothing, where no value is a string.
        return f"({' | '.join(map(literal, values))})" if values else "/[^\\x00-\\x{10ffff}]/"

    def _json(self, schema: Any) -> str:
        written = {"x-guidance": self._root["x-guidance"], **schema}
        if '"$ref"' in json.dumps(schema):
            written["$defs"] = self._root["$defs"]
        return f"%json {json.dumps(written)} {literal(_END)}"

    def _refusal(self, what: str) -> InvalidRequest:
        return InvalidRequest(
            f"The way in which this model writes calls cannot enforce {what}. "
            "Leave it out, or offer this tool without strict and with tool_choice auto.",
            param=self._param,
        )


def _opening(name: str) -> str:
    return f"<parameter={name}>\n"


def _is_writable(name: str) -> bool:
    """Tell whether a parameter's name can stand in a tag."""
    return name != "" and name == name.strip() and not set("<>\n") & set(name)
