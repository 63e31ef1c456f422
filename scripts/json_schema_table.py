"""Writes docs/json-schema.md: what becomes of each keyword, counted over the JSON-Schema-Test-Suite.

PYTHONPATH=. .venv/bin/python scripts/json_schema_table.py
"""

# ruff: noqa: E501  (rows of a table are one line each)
from __future__ import annotations

from collections import Counter
from pathlib import Path

from server.chat.json_schema.bounds import (
    MAX_ALTERNATIVES,
    MAX_BYTES,
    MAX_COUNT,
    MAX_COUNTED,
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_NEGATED,
    MAX_OPTIONAL,
    MAX_VALUES,
)
from server.chat.json_schema.compilable import MAX_ITEMS, MAX_LEVELS, MAX_MULTIPLE
from server.core.errors import InvalidRequest
from tests.fakes import FakeTokenizer
from tests.schema_suite import Case, cases
from tests.schemas import compiled

TARGET = Path(__file__).resolve().parent.parent / "docs" / "json-schema.md"
DRAFTS = ("draft2020-12", "draft7")

KEYWORDS: dict[str, tuple[str, str, str]] = {
    "type": ("enforced", "type", "Integers are written without a fraction."),
    "enum": ("enforced", "enum", "No control characters but tab and line breaks, no number as under `minimum`."),
    "const": ("enforced", "const", "As `enum`."),
    "properties": ("enforced", "properties", "In the schema's order; names that are not listed come after them."),
    "required": ("enforced", "required", ""),
    "additionalProperties": ("enforced", "additionalProperties", ""),
    "patternProperties": ("in part", "patternProperties", "Patterns of one schema must not overlap."),
    "propertyNames": ("in part", "propertyNames", "With `const`, `enum`, `pattern` or lengths; not beside `patternProperties`."),
    "minProperties": ("in part", "minProperties", "At most one more than are required, unless nothing else is allowed."),
    "maxProperties": ("in part", "maxProperties", "Where optional properties are listed, in simple cases only."),
    "dependentRequired": ("enforced", "dependentRequired", ""),
    "dependentSchemas": ("enforced", "dependentSchemas", ""),
    "dependencies": ("enforced", "optional/dependencies-compatibility", "As older drafts had it."),
    "unevaluatedProperties": ("in part", "unevaluatedProperties", "Beside `allOf` and `$ref`, not beside what chooses between schemas."),
    "items": ("enforced", "items", "A list of schemas is `prefixItems`, as in older drafts."),
    "additionalItems": ("enforced", "additionalItems", "Beside such a list."),
    "prefixItems": ("enforced", "prefixItems", ""),
    "minItems": ("enforced", "minItems", ""),
    "maxItems": ("enforced", "maxItems", ""),
    "uniqueItems": ("refused", "uniqueItems", "`false`, or with one item at most, it says nothing."),
    "contains": ("in part", "contains", "Beside a `maxItems` of 16 at most."),
    "minContains": ("in part", "minContains", "0, or where `contains` is `true`."),
    "maxContains": ("in part", "maxContains", "As `minContains`."),
    "unevaluatedItems": ("in part", "unevaluatedItems", "As `unevaluatedProperties`."),
    "minLength": ("enforced", "minLength", ""),
    "maxLength": ("enforced", "maxLength", ""),
    "pattern": ("in part", "pattern", "ECMAScript's, without looking around, back references, `\\b`, `\\p` and flags."),
    "format": ("in part", "format", "Those of the next table; any other one is refused."),
    "minimum": ("enforced", "minimum", "No bound beyond ±2^53, or with more than 15 digits of which some are a fraction's. No exponents in an answer."),
    "maximum": ("enforced", "maximum", "As `minimum`."),
    "exclusiveMinimum": ("enforced", "exclusiveMinimum", "As `minimum`; a number, not draft 4's boolean."),
    "exclusiveMaximum": ("enforced", "exclusiveMaximum", "As `exclusiveMinimum`."),
    "multipleOf": ("in part", "multipleOf", "Of decimals with few digits, exactly: 0.07 is a multiple of 0.01."),
    "anyOf": ("enforced", "anyOf", ""),
    "allOf": ("enforced", "allOf", ""),
    "oneOf": ("in part", "oneOf", "Alternatives that could hold together must be such that `not` is enforced for them."),
    "not": ("in part", "not", "All but `additionalProperties`, `items`, `pattern`, `patternProperties`, `format`, `multipleOf`. Not an integer is no number at all."),
    "if": ("in part", "if-then-else", "With `then` and `else`; as `not` for the condition."),
    "$ref": ("enforced", "ref", "Within the schema: pointers, `$anchor`, `$id`. Nothing is fetched."),
    "$dynamicRef": ("in part", "dynamicRef", "As `$ref`, unless a part has an `$id` of its own."),
    "$recursiveRef": ("refused", "recursiveRef", ""),
    "$anchor": ("enforced", "anchor", ""),
    "$defs": ("enforced", "defs", "`definitions`, too."),
    "$schema": ("in part", "vocabulary", "Draft 4 to 2020-12; keywords mean the same whichever is named."),
    "title": ("ignored", "", "As `description`, `default`, `examples`, `deprecated`, `readOnly`, `writeOnly`, `$comment`, `contentEncoding`, `contentMediaType` and any unknown keyword: the specification says so."),
}  # fmt: skip
"""Keyword → what becomes of it, the suite's file, what to know."""

FORMATS = {
    "date": "No year 0000.",
    "time": "No leap seconds, nine digits of a second at most, capital `Z`.",
    "date-time": "As both, with a capital `T`.",
    "duration": "Nine digits a number at most.",
    "uuid": "",
    "email": "No quoted names, no addresses in brackets, no encoded labels.",
    "hostname": "No encoded labels (`xn--`), 253 characters at most.",
    "ipv4": "",
    "ipv6": "No part written as IPv4.",
    "uri": "No addresses in brackets.",
    "json-pointer": "",
}

_HEAD = f"""\
# JSON Schemas

An answer is made to fit its schema while it is sampled: `response_format` with a schema, `guided_json`, the arguments of
strict tools. A schema is checked and written anew first, with the keywords alone that are known to be enforced right. What cannot
be enforced is a 400 that names the keyword and the place, never left out. This page is written by
`scripts/json_schema_table.py`; a test compares it with what the code does.

Answers are JSON on one line, with a space after `:` and `,`. Strings hold no control characters but tab, line breaks, backspace and
form feed, and no `\\u` escapes: other characters stand for themselves. What a schema does not restrict is free: `{{"minLength": 2}}`
admits any number. A name that `properties` does not list may come twice; as in most readers the last one counts.

Limits: {MAX_BYTES // 1024} KiB, {MAX_VALUES:,} values, {MAX_DEPTH} levels ({MAX_LEVELS} with references followed), {MAX_OPTIONAL} properties of an object that are not required
({MAX_COUNTED} beside `minProperties` and `maxProperties`), {MAX_COUNT:,} items or properties in a bound and {MAX_ITEMS:,} items in all of them, {MAX_LENGTH:,} characters in
a bound, {MAX_ALTERNATIVES} alternatives of a `oneOf` ({MAX_NEGATED} of one that is negated), a common multiple of all `multipleOf` of {MAX_MULTIPLE:,} units of their last digit. Recursion must come to an end: references that lead back
to themselves, or to no finite value, are refused.

## Keywords

Counted are the schemas of the JSON-Schema-Test-Suite in the file about the keyword, draft 2020-12: accepted of all. Many test several
keywords at once.

| keyword | what becomes of it | accepted | to know |
|---|---|---|---|
"""
_FORMATS_HEAD = """
## Formats

| format | accepted | narrower than the standard in |
|---|---|---|
"""
_SUITE_HEAD = """
## The suite

With the optional tests. No instance that the suite holds invalid can be written under an accepted schema; the tests try them
all. Of each accepted schema 20 answers are drawn from random weights at temperature 1.5, at most 1,024 tokens each: every one that
comes to its end is valid, and at most 5 % do not.

| draft | accepted | of | share |
|---|---|---|---|
"""


def accepted(draft: str) -> Counter[tuple[str, bool]]:
    """Count a draft's schemas by file, and whether they are accepted."""
    tokenizer = FakeTokenizer()
    return Counter((case.file, compiles(case, tokenizer)) for case in cases(draft))


def compiles(case: Case, tokenizer: FakeTokenizer) -> bool:
    """Whether answers can be made to fit the schema."""
    try:
        compiled(case.schema, tokenizer)
    except InvalidRequest:
        return False
    return True


def render() -> str:
    """The whole document. Takes seconds."""
    counts = {draft: accepted(draft) for draft in DRAFTS}
    first = counts[DRAFTS[0]]
    keywords = "".join(
        f"| `{keyword}` | {fate} | {_share(first, file)} | {note} |\n"
        for keyword, (fate, file, note) in KEYWORDS.items()
    )
    formats = "".join(
        f"| `{name}` | {_share(first, f'optional/format/{name}')} | {note} |\n"
        for name, note in FORMATS.items()
    )
    suite = "".join(_total(draft, counts[draft]) for draft in DRAFTS)
    return _HEAD + keywords + _FORMATS_HEAD + formats + _SUITE_HEAD + suite


def _share(counts: Counter[tuple[str, bool]], file: str) -> str:
    total = counts[file, True] + counts[file, False]
    return f"{counts[file, True]} of {total}" if total else ""


def _total(draft: str, counts: Counter[tuple[str, bool]]) -> str:
    taken = sum(number for (_, accepted), number in counts.items() if accepted)
    return f"| {draft} | {taken} | {counts.total()} | {taken / counts.total():.0%} |\n"


def main() -> None:
    """Write the document."""
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
