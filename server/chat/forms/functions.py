"""Calls as `<function=NAME><parameter=KEY>VALUE</parameter></function>`: Qwen3-Coder, Qwen3.5, Nemotron 3."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from typing_extensions import override

from server.chat.forms.argument_types import (
    ANY,
    STRING,
    as_json,
    parameter_types,
    parameters_of,
)
from server.chat.forms.calls import CLOSING, OPENING, CallParser
from server.chat.forms.functions_grammar import PARAMETER_END, functions_grammar
from server.chat.reply import Tool
from server.chat.scanning import tag_start

_FUNCTION = "<function="
_FUNCTION_END = "</function>"
_PARAMETER = "<parameter="
_NAME = re.compile(r"[^<>\n]*")


class FunctionsParser(CallParser):
    """Writes the arguments' JSON while the parameters arrive.

    Parameters whose schema says string are strings and are passed on at once; others wait for their
    end, and are JSON where they can be read as such. Some models leave `<tool_call>` out: for tools
    that are offered, `<function=NAME>` is enough.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__((OPENING, _FUNCTION))
        self._schemas: dict[str, Mapping[str, Any]] = {
            tool["function"]["name"]: parameters_of(tool) for tool in tools
        }
        self._bare = False
        self._name: list[str] = []
        self._schema: Mapping[str, Any] = {}
        self._first = True
        self._types = ANY
        self._value: list[str] = []
        self._newline = ""

    @override
    def begin(self, tag: str) -> Callable[[], bool]:
        """Expect the function, or its name."""
        self._name = []
        self._bare = tag == _FUNCTION
        return self._function_name if self._bare else self._function

    @override
    def cut_off(self) -> None:
        """Write what came of a value, and leave the object open."""
        rest = self.text[self.at :]
        if self.state == self._string:
            self._write_string(self._newline + rest)
        elif self.state == self._other:
            self.write(as_json("".join(self._value) + rest, self._types))

    def _function(self) -> bool:
        tag = self.ahead(_FUNCTION)
        if not tag:
            return tag is None and self.fail()
        self.consume(self.at + len(tag))
        self.state = self._function_name
        return True

    def _function_name(self) -> bool:
        name = self._tag_name()
        if name is None:
            return False
        if not name or (self._bare and name not in self._schemas):
            return self.fail()
        self.open(name)
        self.write("{")
        self._schema = self._schemas.get(name, {})
        self._first = True
        self.state = self._body
        return True

    def _body(self) -> bool:
        tag = self.ahead(_PARAMETER, _FUNCTION_END, CLOSING)
        if not tag:
            return tag is None and self.fail()
        if tag == _PARAMETER:
            self.consume(self.at + len(tag))
            self.state = self._parameter_name
            return True
        if tag == _FUNCTION_END:
            self.consume(self.at + len(tag))
        self.write("}")
        return self.done()

    def _parameter_name(self) -> bool:
        key = self._tag_name()
        if key is None:
            return False
        self._types = parameter_types(self._schema, key)
        self._value, self._newline = [], ""
        self.write(("" if self._first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        self._first = False
        if self._types == STRING:
            self.write('"')
        self.state = self._value_starts
        return True

    def _value_starts(self) -> bool:
        if self.text.startswith("\n", self.at):
            self.at += 1
        self.state = self._string if self._types == STRING else self._other
        return True

    def _string(self) -> bool:
        end, complete = self._value_end()
        text = self._newline + self.text[self.at : end]
        self._newline = "\n" if text.endswith("\n") else ""
        self._write_string(text.removesuffix("\n"))
        self.at = end
        if complete:
            self.write('"')
            self._value_ends()
        return complete

    def _other(self) -> bool:
        end, complete = self._value_end()
        self._value.append(self.text[self.at : end])
        self.at = end
        if complete:
            self.write(as_json("".join(self._value), self._types))
            self._value_ends()
        return complete

    def _value_end(self) -> tuple[int, bool]:
        """Return where the text that belongs to the value ends, and whether its closing tag stands there."""
        end = self.text.find(PARAMETER_END, self.at)
        if end >= 0:
            return end, True
        return tag_start(self.text, self.at, (PARAMETER_END,)), False

    def _value_ends(self) -> None:
        self.at += len(PARAMETER_END)
        self.state = self._body

    def _write_string(self, text: str) -> None:
        self.write(json.dumps(text, ensure_ascii=False)[1:-1])

    def _tag_name(self) -> str | None:
        """Read on to the end of a tag; return the name in it when it is there."""
        found = _NAME.match(self.text, self.at)
        self._name.append(self.consume(self.at if found is None else found.end()))
        if self.at == len(self.text):
            return None
        closed = self.text[self.at] == ">"
        name, self._name = "".join(self._name).strip(), []
        self.consume(self.at + closed)
        return name if closed else ""


class FunctionsForm:
    """The form in which every parameter has a tag of its own."""

    name = "functions"
    opening = OPENING

    def parser(self, tools: Sequence[Tool]) -> FunctionsParser:
        """Return a parser of one answer's content."""
        return FunctionsParser(tools)

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        special: Container[str],
        enforce: Callable[[Tool], bool],
        many: bool,
        only: str | None = None,
    ) -> str:
        """Return the grammar of calls."""
        return functions_grammar(tools, special=special, enforce=enforce, many=many, only=only)
