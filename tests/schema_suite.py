"""The JSON-Schema-Test-Suite, as `make install-dev` unpacks it, and a judge of answers."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest

SUITE = Path(sys.prefix) / "share" / "json-schema-test-suite" / "tests"
DRAFTS = {
    "draft2020-12": jsonschema.Draft202012Validator,
    "draft7": jsonschema.Draft7Validator,
}
_SPACE = r"\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"


@dataclass(frozen=True)
class Instance:
    """A value, and whether the suite holds it valid."""

    data: Any
    valid: bool
    description: str


@dataclass(frozen=True)
class Case:
    """One schema of the suite."""

    draft: str
    file: str
    """Its keyword, mostly: `oneOf`, `optional/format/date`."""
    description: str
    schema: Any
    instances: tuple[Instance, ...]

    def __str__(self) -> str:
        return f"{self.draft} {self.file}: {self.description}"


def cases(draft: str) -> Iterator[Case]:
    """All schemas of a draft, the optional ones, too."""
    root = SUITE / draft
    if not root.is_dir():
        explain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        explain(f"{SUITE} is missing: run `make install-dev`")
    for path in sorted(root.rglob("*.json")):
        file = path.relative_to(root).with_suffix("").as_posix()
        for case in json.loads(path.read_text(encoding="utf-8")):
            instances = tuple(
                Instance(test["data"], test["valid"], test["description"]) for test in case["tests"]
            )
            yield Case(draft, file, case["description"], case["schema"], instances)


class Judge:
    """Says whether an answer is valid: numbers are exact, patterns ECMAScript's, formats asserted."""

    def __init__(self, case: Case) -> None:
        plain = DRAFTS[case.draft]
        kind = jsonschema.validators.extend(plain, {"pattern": _pattern})
        schema = json.loads(json.dumps(case.schema), parse_float=_exact)
        self._validator = kind(schema, format_checker=plain.FORMAT_CHECKER)

    def faults(self, answer: str) -> list[str]:
        """What is wrong with it. Raises `ValueError` where it is no JSON."""
        data = json.loads(answer, parse_float=_exact)
        return [error.message for error in self._validator.iter_errors(data)]


def _exact(text: str) -> Fraction | float:
    """Floats would take 0.07 for no multiple of 0.01."""
    if re.search(r"[eE].?[0-9]{4}", text):
        return float(text)
    number = Fraction(text)
    return int(number) if number.denominator == 1 else number


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not matches(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def matches(pattern: str, text: str) -> bool:
    """As ECMAScript searches, for the patterns of the suite."""
    python = re.sub(r"\\u\{([0-9a-fA-F]+)\}", lambda m: re.escape(chr(int(m[1], 16))), pattern)
    python = python.replace(r"\s", f"[{_SPACE}]").replace(r"\S", f"[^{_SPACE}]")
    return re.search(python.replace("$", r"\Z"), text, re.ASCII) is not None
