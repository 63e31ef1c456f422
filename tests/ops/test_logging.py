"""Log lines, for people and for collectors."""

from __future__ import annotations

import io
import json
import logging

import pytest

from server.ops.logging import configure_logging
from server.store.key_text import new_key


@pytest.fixture
def out():
    root, access = logging.getLogger(), logging.getLogger("onegpu.access")
    before = root.handlers[:], root.level, access.level
    yield io.StringIO()
    root.handlers[:], root.level, access.level = before


def log_all():
    extra = {"request_id": "abc", "facts": {"status": 200, "ms": 1.5}}
    logging.getLogger("onegpu.access").info("GET %s", "/x\n", extra=extra)
    logging.getLogger("some").debug("unseen")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logging.getLogger("some").exception("broken")


def test_text_has_the_facts_and_the_traceback(out):
    configure_logging("info", "text", stream=out)
    log_all()
    text = out.getvalue()
    assert "info onegpu.access: GET /x" in text
    assert "request_id=abc status=200 ms=1.5" in text
    assert "ZeroDivisionError" in text
    assert "unseen" not in text


def test_json_is_one_object_per_line(out):
    configure_logging("info", "json", stream=out)
    log_all()
    access, broken = map(json.loads, out.getvalue().splitlines())
    assert access["message"] == "GET /x\n"
    assert (access["request_id"], access["status"], access["level"]) == ("abc", 200, "info")
    assert access["time"].endswith("Z")
    assert "ZeroDivisionError" in broken["exception"]


def test_the_access_log_can_be_switched_off(out):
    configure_logging("info", "json", access_log=False, stream=out)
    log_all()
    assert len(out.getvalue().splitlines()) == 1


def test_noisy_libraries_are_quiet_even_when_debugging(out):
    configure_logging("debug", "text", stream=out)
    logging.getLogger("sse_starlette.sse").debug("chunk: secret")
    assert out.getvalue() == ""


@pytest.mark.parametrize("form", ["text", "json"])
def test_keys_are_cut_down_to_their_public_part_wherever_they_come_from(out, form):
    configure_logging("info", form, stream=out)
    key = new_key("0123456789")
    for text in (key, key[:40]):
        logging.getLogger("a").info("GET /%s", text, extra={"facts": {"model": text}})
    logging.getLogger("a").error("wrong", exc_info=ValueError(key))

    text = out.getvalue()
    assert key[15:40] not in text
    assert text.count("ogk_0123456789_...") >= 5
