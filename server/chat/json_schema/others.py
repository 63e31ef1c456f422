"""All values but some, as schemas: what `not` needs of `const` and `enum`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from server.chat.json_schema.bounds import KINDS, bound, kind_of, literal
from server.chat.json_schema.patterns import ANYTHING, spelt, text_but
from server.chat.json_schema.refusal import Refused

_MAX_PATTERN = 20_000


def identity(value: Any) -> str:
    """Return what is the same for equal JSON values only."""
    return json.dumps(literal(value, "const"), sort_keys=True)


def other_values(values: Sequence[Any], keyword: str) -> Iterator[Any]:
    """Write the alternatives that together admit every value but these. Raises `Refused`."""
    known = {kind: [v for v in values if kind_of(v) == kind] for kind in KINDS}
    yield (
        {"type": [kind for kind in KINDS if not known[kind]]} if not all(known.values()) else False
    )
    if known["boolean"] and len(set(known["boolean"])) == 1:
        yield {"const": not known["boolean"][0]}
    if known["number"]:
        yield from _numbers(sorted({literal(value, keyword) for value in known["number"]}))
    if known["string"]:
        yield {"type": "string", "pattern": _strings(set(known["string"]), keyword)}
    for kind, at_least in (("array", "minItems"), ("object", "minProperties")):
        if any(known[kind]):
            raise Refused(f"'{keyword}' with a value inside an {kind} cannot be negated")
        if known[kind]:
            yield {"type": kind, at_least: 1}


def _numbers(excluded: list[int | float]) -> Iterator[Any]:
    yield {"type": "number", **bound("exclusiveMaximum", excluded[0])}
    for low, high in pairwise(excluded):
        between = bound("exclusiveMinimum", low) | bound("exclusiveMaximum", high)
        yield {"type": "number", **between}
    yield {"type": "number", **bound("exclusiveMinimum", excluded[-1])}


def _strings(words: set[str], keyword: str) -> str:
    """A pattern of all strings but these: they end early, or leave the words' tree somewhere."""
    after: dict[str, set[str]] = {}
    for word in words:
        for i in range(len(word) + 1):
            after.setdefault(word[:i], set()).update(word[i : i + 1])
    if sum(len(prefix) for prefix in after) > _MAX_PATTERN:
        raise Refused(f"'{keyword}' has too much text to be negated")
    ways = [spelt(prefix) + text_but(following) + ANYTHING for prefix, following in after.items()]
    ways += [spelt(prefix) for prefix in after if prefix not in words]
    return f"^(?:{'|'.join(ways)})$"
