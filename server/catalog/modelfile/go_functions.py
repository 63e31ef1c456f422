"""The functions of Go's templates, and the few that Ollama adds, as Jinja expressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from server.catalog.modelfile.go_tree import GoTemplateError
from server.catalog.modelfile.go_values import (
    ELEMENTS,
    Value,
    as_json,
    judged,
    literal,
    same_kind,
    written,
)

_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_VERB = re.compile(r"%(.?)", re.DOTALL)
_VERBS = {"s": ("string", "any"), "d": ("int",)}


def call(name: str, arguments: Sequence[Value], offset: int) -> Value:
    """Return the value of a function. Raises `GoTemplateError` for what is not converted."""
    if name in _COMPARISONS:
        return _compare(name, arguments, offset)
    known: dict[str, tuple[int, int, Callable[[Sequence[Value], int], Value]]] = {
        "and": (1, 99, _and),
        "or": (1, 99, _or),
        "not": (1, 1, _not),
        "len": (1, 1, _len),
        "slice": (2, 3, _slice),
        "index": (2, 2, _index),
        "printf": (1, 99, _printf),
        "json": (1, 1, lambda given, at: as_json(given[0], at)),
        "currentDate": (0, 1, _today),
    }
    if name not in known:
        raise GoTemplateError(offset, f"the function {name} is not converted.")
    fewest, most, build = known[name]
    if not fewest <= len(arguments) <= most:
        raise GoTemplateError(offset, f"{name} does not take {len(arguments)} arguments.")
    return build(arguments, offset)


def _compare(name: str, arguments: Sequence[Value], offset: int) -> Value:
    operator = _COMPARISONS[name]
    if len(arguments) < 2 or (len(arguments) > 2 and name != "eq"):
        raise GoTemplateError(offset, f"{name} does not take {len(arguments)} arguments.")
    first = arguments[0]
    for other in arguments[1:]:
        same_kind(first, other, operator, offset)
    tests = [f"{first.code} {operator} {other.code}" for other in arguments[1:]]
    return Value(f"({' or '.join(tests)})", "bool")


def _and(arguments: Sequence[Value], offset: int) -> Value:
    return _joined("and", arguments, offset)


def _or(arguments: Sequence[Value], offset: int) -> Value:
    return _joined("or", arguments, offset)


def _joined(operator: str, arguments: Sequence[Value], offset: int) -> Value:
    """Like Python's operators, Go's `and` and `or` return one of their arguments."""
    del offset
    kinds = {argument.kind for argument in arguments}
    if len(kinds) == 1 and judged(arguments[0]) == arguments[0].code:
        codes, kind = [argument.code for argument in arguments], kinds.pop()
    else:
        codes, kind = [judged(argument) for argument in arguments], "condition"
    return Value(f"({f' {operator} '.join(codes)})", kind)


def _not(arguments: Sequence[Value], offset: int) -> Value:
    del offset
    return Value(f"(not {judged(arguments[0])})", "bool")


def _len(arguments: Sequence[Value], offset: int) -> Value:
    [value] = arguments
    if value.kind not in ELEMENTS and value.kind != "properties":
        message = f"len of a {value.kind} is not converted (of a string, Go counts bytes)."
        raise GoTemplateError(offset, message)
    return Value(f"({value.code}|length)", "int")


def _slice(arguments: Sequence[Value], offset: int) -> Value:
    value, *bounds = arguments
    if value.kind not in ELEMENTS or any(bound.kind != "int" for bound in bounds):
        raise GoTemplateError(offset, f"slice of a {value.kind} is not converted.")
    if any(bound.code.startswith("(-") for bound in bounds):
        raise GoTemplateError(offset, "a bound of slice is negative.")
    end = bounds[1].code if len(bounds) > 1 else ""
    return Value(f"{value.code}[{bounds[0].code}:{end}]", value.kind)


def _index(arguments: Sequence[Value], offset: int) -> Value:
    value, place = arguments
    if value.kind not in ELEMENTS or place.kind != "int":
        raise GoTemplateError(offset, f"index into a {value.kind} is not converted.")
    inside = f"0 <= {place.code} < {value.code}|length"
    # Go fails there; Python would count from the end.
    failure = "raise_exception('the template looks for a message that is not there')"
    return Value(f"({value.code}[{place.code}] if {inside} else {failure})", ELEMENTS[value.kind])


def _printf(arguments: Sequence[Value], offset: int) -> Value:
    form, *values = arguments
    match = re.fullmatch(r"'(.*)'", form.code, re.DOTALL)
    if form.kind != "string" or match is None:
        raise GoTemplateError(offset, "printf needs its format written out.")
    pieces: list[str] = []
    position, inner = 0, match[1]
    for verb in _VERB.finditer(inner):
        pieces.append(f"'{inner[position : verb.start()]}'")
        position = verb.end()
        if verb[1] == "%":
            pieces.append("'%'")
            continue
        if verb[1] not in ("s", "d", "v") or not values:
            raise GoTemplateError(offset, f"printf with {verb[0]!r} is not converted.")
        value = values.pop(0)
        if value.kind not in _VERBS.get(verb[1], (value.kind,)):
            raise GoTemplateError(offset, f"printf writes a {value.kind} with {verb[0]!r}.")
        pieces.append(written(value, offset))
    if values:
        raise GoTemplateError(offset, "printf has more values than its format.")
    pieces.append(f"'{inner[position:]}'")
    shown = [piece for piece in pieces if piece != "''"]
    return Value(f"({' ~ '.join(shown) or literal('')})", "string")


def _today(arguments: Sequence[Value], offset: int) -> Value:
    del arguments, offset
    return Value("strftime_now('%Y-%m-%d')", "string")
