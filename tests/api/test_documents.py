"""docs/api.md names every field, endpoint, error, header and metric; and no metric too many."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.api.errors import STATUS
from server.api.schemas.chat import ChatRequest
from server.api.schemas.common import GenerationFields, StreamOptions
from server.api.schemas.completions import CompletionRequest
from server.api.schemas.system import DetokenizeRequest, ModelRequest, TokenizeRequest
from server.core import errors
from server.engine.plan import DecodeCode
from server.engine.prefix_index import Missed
from tests.serving import Stack

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
MODELS = (
    ChatRequest,
    CompletionRequest,
    StreamOptions,
    TokenizeRequest,
    DetokenizeRequest,
    ModelRequest,
)
FIELDS = {field.alias or name for model in MODELS for name, field in model.model_fields.items()}


def documented(name):
    return f"`{name}`" in TEXT or f"`{name.partition(' ')[2]}`" in TEXT


@pytest.mark.parametrize(
    "name",
    sorted(
        FIELDS
        | GenerationFields.LABELS
        | GenerationFields.WITHOUT_EFFECT.keys()
        | GenerationFields.REFUSED.keys()
    ),
)
def test_every_field_is_documented(name):
    assert documented(name)


def section(title):
    return TEXT.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_error_is_documented_with_its_status():
    rows = {
        code: int(status)
        for status, code in re.findall(r"^\| (\d+) \| `(\w+)`", section("Errors"), re.MULTILINE)
    }
    assert rows == {code: status for code, (status, _) in STATUS.items()}


def test_every_error_of_a_request_has_a_status():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.OnegpuError)
        and kind not in (errors.ConfigError, errors.ModelFileError)
    ]
    assert len(kinds) > 12
    assert {kind.code for kind in kinds} <= STATUS.keys()


def test_every_endpoint_is_documented():
    stack = Stack()
    stack.service.shutdown()
    listed = set(re.findall(r"^\| `((?:GET|POST) \S+)` \|", section("Endpoints"), re.MULTILINE))
    paths = stack.app.openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert listed == served | {"GET /openapi.json"}


def test_the_metrics_table_is_what_is_exposed():
    stack = Stack()
    stack.service.shutdown()
    listed = re.findall(r"^\| `(onegpu_\w+)` \|", section("Metrics"), re.MULTILINE)
    assert sorted(listed) == stack.metrics.names()


def test_every_counter_of_the_engine_is_documented():
    parts = sorted((ROOT / "server" / "engine").glob("*.py"))
    source = "".join(path.read_text(encoding="utf-8") for path in parts)
    names = set(re.findall(r'counters\["(\w+)"\]', source))
    assert len(names) > 25
    names |= {f"decode_{code.name.lower()}" for code in DecodeCode if code is not DecodeCode.OK}
    names |= {f"prefix_missed_{reason}" for reason in Missed} | {"finished_stop", "finished_length"}
    assert {name for name in names if f"`{name}`" not in section("Metrics")} == set()
