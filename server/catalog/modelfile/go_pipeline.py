"""What stands in one tag of a Go template: variables, functions, operands."""

from __future__ import annotations

import re
from typing import NoReturn

from server.catalog.modelfile.go_pieces import Token
from server.catalog.modelfile.go_tree import (
    DEEPEST,
    Call,
    Chain,
    Constant,
    Expression,
    GoTemplateError,
    Path,
    Pipe,
)

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "a": "\a", "b": "\b"}
_ESCAPED |= {"f": "\f", "v": "\v"}


class Pipeline:
    """Parses the tokens of one tag."""

    def __init__(self, tokens: tuple[Token, ...], offset: int) -> None:
        self._tokens = tokens
        self._at = 0
        self._offset = offset
        self._depth = 0

    def pipe(self, *, several: bool = False) -> Pipe:
        """Read the whole tag. `several`: two variables may be declared, as in a range."""
        variables, declares = self._targets(several=several)
        value = self._piped()
        if self._at < len(self._tokens):
            self._fail(f"{self._tokens[self._at].text!r} is not understood here.")
        return Pipe(self._offset, variables, declares, value)

    def _targets(self, *, several: bool) -> tuple[tuple[str, ...], bool]:
        kinds = [(token.kind, token.text) for token in self._tokens[:4]]
        for count in (1, 2):
            place = 2 * count - 1
            if len(kinds) <= place or kinds[place] not in (("mark", ":="), ("mark", "=")):
                continue
            named = [
                text for kind, text in kinds[:place:2] if kind == "variable" and "." not in text
            ]
            if len(named) < count or (count == 2 and (not several or kinds[1] != ("mark", ","))):
                self._fail("this assignment is not understood.")
            self._at = place + 1
            return tuple(named), kinds[place][1] == ":="
        return (), False

    def _piped(self) -> Expression:
        self._depth += 1
        if self._depth > DEEPEST:
            self._fail("parentheses are nested too deep.")
        value = self._command(None)
        while self._mark("|"):
            value = self._command(value)
        self._depth -= 1
        return value

    def _command(self, piped: Expression | None) -> Expression:
        """Read a function with its arguments, or a single operand."""
        token = self._peek()
        if (
            token is not None
            and token.kind == "word"
            and token.text not in ("true", "false", "nil")
        ):
            self._at += 1
            arguments: list[Expression] = []
            while (following := self._peek()) is not None and following.text not in ("|", ")"):
                arguments.append(self._operand())
            if piped is not None:
                arguments.append(piped)
            return Call(token.offset, token.text, tuple(arguments))
        operand = self._operand()
        following = self._peek()
        if piped is not None or (following is not None and following.text not in ("|", ")")):
            self._fail("only functions take arguments.")
        return operand

    def _operand(self) -> Expression:
        token = self._peek()
        if token is None:
            self._fail("a value is missing.")
        self._at += 1
        if (constant := _constant(token)) is not None:
            return constant
        if token.kind == "field":
            return Path(token.offset, None, tuple(token.text[1:].split(".")))
        if token.kind == "variable":
            name, *fields = token.text.split(".")
            return Path(token.offset, name, tuple(fields))
        if token.kind == "word":
            return Call(token.offset, token.text, ())
        if token.text == ".":
            return Path(token.offset, None, ())
        if token.text == "(":
            return self._parenthesis(token)
        raise GoTemplateError(token.offset, f"{token.text!r} is not understood here.")

    def _parenthesis(self, opening: Token) -> Expression:
        value = self._piped()
        if not self._mark(")"):
            raise GoTemplateError(opening.offset, "( is opened here and never closed.")
        following = self._peek()
        if following is not None and following.kind == "field" and not following.spaced:
            self._at += 1
            return Chain(opening.offset, value, tuple(following.text[1:].split(".")))
        return value

    def _peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _mark(self, text: str) -> bool:
        token = self._peek()
        if token is None or token.kind != "mark" or token.text != text:
            return False
        self._at += 1
        return True

    def _fail(self, message: str) -> NoReturn:
        token = self._peek()
        raise GoTemplateError(self._offset if token is None else token.offset, message)


def _constant(token: Token) -> Constant | None:
    """Return the value that `token` writes out; None when it is no constant."""
    known: dict[str, bool | None] = {"true": True, "false": False, "nil": None}
    if token.kind == "string":
        return Constant(token.offset, _unescaped(token))
    if token.kind == "raw":
        return Constant(token.offset, token.text[1:-1])
    if token.kind == "number":
        if re.fullmatch(r"[+-]?(?:0|[1-9]\d{0,17})", token.text) is None:
            raise GoTemplateError(token.offset, f"the number {token.text} is not converted.")
        return Constant(token.offset, int(token.text))
    if token.kind == "word" and token.text in known:
        return Constant(token.offset, known[token.text])
    return None


def _unescaped(token: Token) -> str:
    def replaced(match: re.Match[str]) -> str:
        number = match[1] or match[2] or match[3]
        if match[1] and int(match[1], 16) > 0x7F:
            raise GoTemplateError(
                token.offset, f"the byte {match[0]} in a string is not converted."
            )
        if number and int(number, 16) <= 0x10FFFF and not 0xD800 <= int(number, 16) <= 0xDFFF:
            return chr(int(number, 16))
        if match[4] in _ESCAPED:
            return _ESCAPED[match[4]]
        raise GoTemplateError(token.offset, f"the escape {match[0]} in a string is not known.")

    return _ESCAPE.sub(replaced, token.text[1:-1])
