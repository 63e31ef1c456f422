"""From a Go template's tree to lines of Jinja, with Go's scopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.catalog.modelfile.go_functions import call
from server.catalog.modelfile.go_tree import (
    Action,
    Block,
    Call,
    Chain,
    Constant,
    Expression,
    GoTemplateError,
    Jump,
    Node,
    Path,
    Pipe,
    Text,
)
from server.catalog.modelfile.go_values import (
    ELEMENTS,
    MAPS,
    Value,
    field,
    judged,
    literal,
    written,
)


@dataclass(slots=True)
class Usage:
    """What a template reads, and so what it can show to the model."""

    names: set[str]
    strings: set[str]
    writes_role: bool = False


def usage(nodes: Iterable[Node]) -> Usage:
    """Walk a tree."""
    found = Usage(set(), set())
    for node in nodes:
        if isinstance(node, Action):
            _expression(node.pipe.value, found)
            value = node.pipe.value
            plain = isinstance(value, Path) and value.fields[-1:] == ("Role",)
            found.writes_role |= plain and not node.pipe.variables
        elif isinstance(node, Block):
            _expression(node.pipe.value, found)
            for inner in (usage(node.body), usage(node.orelse)):
                found.names |= inner.names
                found.strings |= inner.strings
                found.writes_role |= inner.writes_role
    return found


def reads(expression: Expression, name: str) -> bool:
    """Tell whether a field of this name is in `expression`."""
    found = Usage(set(), set())
    _expression(expression, found)
    return name in found.names


def _expression(expression: Expression, found: Usage) -> None:
    match expression:
        case Constant():
            if isinstance(expression.value, str):
                found.strings.add(expression.value)
        case Path():
            found.names.update(expression.fields)
        case Call():
            for argument in expression.arguments:
                _expression(argument, found)
        case Chain():
            found.names.update(expression.fields)
            _expression(expression.base, found)


class Emitter:
    """Writes one body. Variables live in the Jinja namespace `go`, under names used only once."""

    def __init__(self, root: Mapping[str, Value], *, cut: bool = False) -> None:
        """`root`: the fields of the outermost dot.

        `cut`: leave out what comes after the answer, which is where generation begins.
        """
        self.lines: list[str] = []
        self._root = root
        self._cut = cut
        self._ended = False
        self._dot: Value | None = None
        self._scopes: list[dict[str, Value]] = [{}]
        self._count = 0

    def body(self, nodes: Sequence[Node]) -> None:
        """Write nodes in a scope of their own."""
        self._scopes.append({})
        for node in nodes:
            if not self._ended:
                self._node(node)
        self._scopes.pop()

    def _node(self, node: Node) -> None:
        match node:
            case Text():
                self._write(literal(node.text))
            case Action():
                self._action(node.pipe)
            case Jump():
                self._say(node.keyword)
            case Block(keyword="range"):
                self._range(node)
            case Block():
                self._branch(node)

    def _action(self, pipe: Pipe) -> None:
        value = self._value(pipe.value)
        if pipe.variables:
            self._assign(pipe, value)
        else:
            self._write(written(value, pipe.offset))
        self._ended = self._cut and reads(pipe.value, "Response")

    def _branch(self, block: Block) -> None:
        value = self._value(block.pipe.value)
        self._scopes.append({})
        if block.pipe.variables:
            value = self._assign(block.pipe, value)
        self._say(f"if {judged(value)}")
        outer = self._dot
        if block.keyword == "with":
            self._dot = value
        self.body(block.body)
        self._dot = outer
        if block.orelse and not self._ended:
            self._say("else")
            self.body(block.orelse)
        self._say("endif")
        self._scopes.pop()

    def _range(self, block: Block) -> None:
        value, pipe = self._value(block.pipe.value), block.pipe
        if pipe.variables and not pipe.declares:
            raise GoTemplateError(pipe.offset, "a range into existing variables is not converted.")
        self._count += 1
        item = f"item{self._count}"
        if value.kind in MAPS:
            key = Value(f"key{self._count}", "string")
            element = Value(item, MAPS[value.kind])
            # Go walks maps in the order of their keys.
            self._say(f"for {key.code}, {item} in {value.code}|dictsort(true)")
        elif value.kind in ELEMENTS:
            key, element = Value("loop.index0", "int"), Value(item, ELEMENTS[value.kind])
            self._say(f"for {item} in {value.code}")
        else:
            raise GoTemplateError(pipe.offset, f"range over a {value.kind} is not converted.")
        outer, self._dot = self._dot, element
        self._scopes.append({})
        for name, each in zip(reversed(pipe.variables), (element, key), strict=False):
            self._declare(name, each)
        self.body(block.body)
        self._scopes.pop()
        self._dot = outer
        if block.orelse and not self._ended:
            self._say("else")
            self.body(block.orelse)
        self._say("endfor")

    def _assign(self, pipe: Pipe, value: Value) -> Value:
        """Give a value to a variable, new or known; return the variable."""
        [name] = pipe.variables
        if pipe.declares:
            return self._declare(name, value)
        known = self._variable(name, pipe.offset)
        if known.kind != value.kind:
            message = f"{name} is a {known.kind} and cannot become a {value.kind}."
            raise GoTemplateError(pipe.offset, message)
        self._say(f"set {known.code} = {value.code}")
        return known

    def _declare(self, name: str, value: Value) -> Value:
        if name == "$_":
            return value
        self._count += 1
        known = Value(f"go.{name[1:]}_{self._count}", value.kind)
        self._scopes[-1][name] = known
        self._say(f"set {known.code} = {value.code}")
        return known

    def _variable(self, name: str, offset: int) -> Value:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise GoTemplateError(offset, f"the variable {name} is not declared.")

    def _value(self, expression: Expression) -> Value:
        match expression:
            case Constant():
                return self._constant(expression)
            case Call():
                given = [self._value(argument) for argument in expression.arguments]
                return call(expression.function, given, expression.offset)
            case Chain():
                return self._fields(
                    self._value(expression.base), expression.fields, expression.offset
                )
            case Path():
                return self._path(expression)

    def _path(self, path: Path) -> Value:
        rooted = path.variable == "$" or (path.variable is None and self._dot is None)
        if not rooted:
            start = (
                self._dot if path.variable is None else self._variable(path.variable, path.offset)
            )
            if start is None:
                raise GoTemplateError(path.offset, "the dot is not known here.")
            return self._fields(start, path.fields, path.offset)
        if not path.fields:
            raise GoTemplateError(path.offset, "the whole of what a template is given is no value.")
        name, *rest = path.fields
        if name not in self._root:
            has = ", ".join(f".{each}" for each in self._root)
            raise GoTemplateError(path.offset, f".{name} is not known. There is {has}.")
        return self._fields(self._root[name], rest, path.offset)

    def _fields(self, value: Value, names: Iterable[str], offset: int) -> Value:
        for name in names:
            value = field(value, name, offset)
        return value

    def _constant(self, constant: Constant) -> Value:
        match constant.value:
            case bool():
                return Value("true" if constant.value else "false", "bool")
            case int():
                return Value(f"({constant.value})", "int")
            case str():
                return Value(literal(constant.value), "string")
        raise GoTemplateError(constant.offset, "nil is not converted.")

    def _write(self, code: str) -> None:
        self.lines.append(f"{{{{- {code} -}}}}")

    def _say(self, statement: str) -> None:
        self.lines.append(f"{{%- {statement} -%}}")
