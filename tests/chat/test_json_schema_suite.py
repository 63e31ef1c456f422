"""The JSON-Schema-Test-Suite against what clients may ask for, and the page that says so."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import json_schema_table
from server.chat.json_schema.formats import FORMATS
from server.chat.json_schema.keywords import HANDLERS
from server.core.errors import InvalidRequest
from tests.fakes import FakeTokenizer
from tests.schema_suite import cases
from tests.schemas import admitted, compiled

DRAFT = "draft2020-12"
ORDERS = 120
"""Orders of an object's properties that are tried: the grammar has one."""


def spellings(data: Any) -> Iterator[Any]:
    """The value with its properties in every order."""
    if isinstance(data, dict):
        for names in itertools.permutations(data):
            for values in itertools.product(*(list(spellings(data[name])) for name in names)):
                yield dict(zip(names, values, strict=True))
    elif isinstance(data, list):
        yield from map(list, itertools.product(*(list(spellings(item)) for item in data)))
    else:
        yield data


@pytest.mark.slow
def test_nothing_that_the_suite_holds_invalid_can_be_answered() -> None:
    tokenizer = FakeTokenizer()
    wrong, tried, valid = [], 0, 0
    for case in cases(DRAFT):
        try:
            grammar = compiled(case.schema, tokenizer)
        except InvalidRequest:
            continue
        for instance in case.instances:
            found = any(
                admitted(grammar, json.dumps(spelling, ensure_ascii=False))
                for spelling in itertools.islice(spellings(instance.data), ORDERS)
            )
            tried += 1
            valid += found and instance.valid
            if found and not instance.valid:
                wrong.append(f"{case}: {instance.description}")
    assert not wrong, "\n".join(wrong)
    # The grammars are not merely narrow.
    assert valid > 0.5 * tried


@pytest.mark.slow
def test_the_page_says_what_becomes_of_each_keyword() -> None:
    page = Path(json_schema_table.TARGET).read_text(encoding="utf-8")
    assert page == json_schema_table.render(), "run scripts/json_schema_table.py"


def test_every_keyword_and_format_has_its_row() -> None:
    rows = json_schema_table.KEYWORDS
    named = {keyword for keyword, (fate, _, _) in rows.items() if fate != "ignored"}
    # Read beside another one, or where references lead.
    beside = {"additionalItems", "minContains", "maxContains", "$anchor", "$defs", "if"}
    assert named - beside == HANDLERS.keys() - beside
    assert json_schema_table.FORMATS.keys() == FORMATS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("draft", json_schema_table.DRAFTS)
def test_most_schemas_of_the_suite_are_accepted(draft: str) -> None:
    counts = json_schema_table.accepted(draft)
    taken = sum(number for (_, accepted), number in counts.items() if accepted)
    assert taken >= 0.6 * counts.total()
