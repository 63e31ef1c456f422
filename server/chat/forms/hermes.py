"""Calls as `<tool_call>{"name": …, "arguments": …}</tool_call>`: Qwen2.5, Qwen3, Hermes, Granite 4."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Sequence

from typing_extensions import override

from server.chat.forms.argument_types import chosen_tools, parameters_of
from server.chat.forms.calls import OPENING, CallParser
from server.chat.forms.json_text import Unescaper, ValueEnd, string_end, unescaped
from server.chat.forms.lark import calls_grammar, literal, param_of
from server.chat.json_schema import check_schema
from server.chat.reply import Tool

_ARGUMENTS = ("arguments", "parameters")
_SCALAR = re.compile(r"[-+.\w]+")


class HermesParser(CallParser):
    """Reads the members of the call's object one by one, in any order.

    Arguments are passed on as they are written; given as a JSON string, as it reads.
    """

    def __init__(self) -> None:
        super().__init__((OPENING,))
        self._reset()

    def _reset(self) -> None:
        self._key = ""
        self._name: str | None = None
        self._has_arguments = False
        self._reads_arguments = False
        self._early: list[str] = []  # arguments that came before the name
        self._string: list[str] = []
        self._ends = ValueEnd()
        self._unescape = Unescaper()

    @override
    def begin(self, tag: str) -> Callable[[], bool]:
        """Expect the call's object."""
        self._reset()
        return self._object

    @override
    def cut_off(self) -> None:
        """Write an escape that was broken off."""
        rest = self.text[self.at :]
        if self._reads_arguments and self.state == self._string_value:
            self._take(self._unescape.push(rest) + self._unescape.close())
        elif self._reads_arguments and self.state == self._nested_value:
            self._take(rest)

    def _object(self) -> bool:
        return self._expect("{", self._member)

    def _member(self) -> bool:
        return self._object_ends() or self._expect('"', self._key_string)

    def _comma(self) -> bool:
        return self._object_ends() or self._expect(",", self._member)

    def _key_string(self) -> bool:
        key = self._whole_string()
        if key is None:
            return False
        self._key = key
        self.state = self._colon
        return True

    def _colon(self) -> bool:
        is_name = self._key == "name" and self._name is None
        return self._expect(":", self._name_quote if is_name else self._value)

    def _name_quote(self) -> bool:
        return self._expect('"', self._name_string)

    def _name_string(self) -> bool:
        name = self._whole_string()
        if name is None:
            return False
        if not name:
            return self.fail()
        self._name = name
        if self._has_arguments:
            self._open()
        self.state = self._comma
        return True

    def _value(self) -> bool:
        """Begin a value: the arguments, or one that has no meaning here."""
        first = self.next()
        if not first:
            return False
        if first in "{[":
            state, self._ends = self._nested_value, ValueEnd()
        elif first == '"':
            state = self._string_value
        elif _SCALAR.match(first):
            state = self._scalar_value
        else:
            return self.fail()
        self._reads_arguments = self._key in _ARGUMENTS and not self._has_arguments
        if self._reads_arguments:
            self._has_arguments = True
            if self._name is not None:
                self._open()
        if first == '"':
            self.consume(self.at + 1)
        self.state = state
        return True

    def _string_value(self) -> bool:
        self._take(self._unescape.push(self.consume(string_end(self.text, self.at))))
        if not self.text.startswith('"', self.at):
            return False
        self._take(self._unescape.close())
        return self._value_ends(self.at + 1)

    def _nested_value(self) -> bool:
        end, complete = self._ends.find(self.text, self.at)
        self._take(self.consume(end))
        return complete and self._value_ends(end)

    def _scalar_value(self) -> bool:
        found = _SCALAR.match(self.text, self.at)
        end = self.at if found is None else found.end()
        self._take(self.consume(end))
        return end < len(self.text) and self._value_ends(end)

    def _value_ends(self, end: int) -> bool:
        self.consume(end)
        self._reads_arguments = False
        self.state = self._comma
        return True

    def _object_ends(self) -> bool:
        if self.next() != "}":
            return False
        self.consume(self.at + 1)
        if self.is_open:
            return self.done()
        if self._name is None:
            return self.fail()
        # Models leave the arguments out where a tool has none.
        self._open()
        self.write("{}")
        return self.done()

    def _open(self) -> None:
        self.open(self._name or "")
        self.write("".join(self._early))

    def _take(self, text: str) -> None:
        if not self._reads_arguments:
            return
        if self.is_open:
            self.write(text)
        else:
            self._early.append(text)

    def _whole_string(self) -> str | None:
        """Read on in a string; return what it says when its end is there."""
        self._string.append(self.consume(string_end(self.text, self.at)))
        if not self.text.startswith('"', self.at):
            return None
        self.consume(self.at + 1)
        raw, self._string = "".join(self._string), []
        return unescaped(raw)

    def _expect(self, wanted: str, state: Callable[[], bool]) -> bool:
        """Go on to `state` after white space and a certain character; anything else is no call."""
        first = self.next()
        if not first:
            return False
        if first != wanted:
            return self.fail()
        self.consume(self.at + 1)
        self.state = state
        return True


class HermesForm:
    """The form in which a call is one JSON object."""

    name = "hermes"
    opening = OPENING

    def parser(self, tools: Sequence[Tool]) -> HermesParser:  # noqa: ARG002 - of any type
        """Return a parser of one answer's content."""
        return HermesParser()

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
        chosen = chosen_tools(tools, only)
        bodies = (
            literal(f'{{"name": {json.dumps(tool["function"]["name"])}, "arguments": ')
            + f" %json {_arguments(index, tool, enforced=enforce(tool))} "
            + literal("}")
            for index, tool in chosen
        )
        return "\n".join(calls_grammar(chosen, bodies, special=special, many=many))


def _arguments(index: int, tool: Tool, *, enforced: bool) -> str:
    return check_schema(parameters_of(tool) if enforced else {"type": "object"}, param_of(index))
