"""The table, the document and the chart."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from server.bench.chart import COLOURS, chart
from server.bench.client import Outcome, Target
from server.bench.driver import Peer
from server.bench.probe import Probed
from server.bench.report import cells, document, remarks, seconds, table
from server.bench.session import Plan
from server.bench.statistics import Measured

USAGE = {"prompt_tokens": 100, "completion_tokens": 3}
PLAN = Plan([], rounds=2, seed=7, tokens_per_word=1.2)
SVG = "{http://www.w3.org/2000/svg}"


def answer(first: float, **more) -> Outcome:
    given = {"arrivals": [first, first + 0.1, first + 0.3], "usage": USAGE, "cached": 40, **more}
    return Outcome(status=200, total=first + 0.3, **given)


def run(server: str, number: int, *outcomes: Outcome, **more) -> Measured:
    given = {"scenario": "agents", "phase": "warm", "users": 4, "seconds": 2.0, **more}
    return Measured(server=server, round=number, outcomes=outcomes, **given)


def probed(label: str, **more) -> Probed:
    peer = Peer(label, Target("h", 1, key="secret"), "m", **more)
    return Probed(peer, tells_usage=True, tells_cached=True)


BOTH = [
    run("a", 0, answer(1.0)),
    run("b", 0, answer(2.0), answer(2.0)),
    run("a", 1, answer(3.0)),
    run("b", 1, answer(12.0), Outcome(status=503, code="queue_full", message="The line is full.")),
]


def test_the_table_has_a_line_for_each_server_and_their_ratio() -> None:
    head, first, second, ratio = table(BOTH).splitlines()

    assert head.split()[:4] == ["scenario", "server", "first", "p50"]
    assert re.split(r"  +", first)[:3] == ["agents warm @4", "a", "2.00"]
    assert first.endswith("80 / 200")
    assert "1 of 4" in second
    # 1/2 in one round, 3/12 in the other.
    assert re.split(r"  +", ratio.strip())[:2] == ["a / b", "0.38×"]
    assert ratio.endswith("computed 0.67×")


def test_three_servers_are_each_compared_with_the_first() -> None:
    lines = table([run(name, 0, answer(1.0)) for name in "abc"]).splitlines()

    assert [line.split("  ")[0] for line in lines[1:4]] == ["agents warm @4", "", ""]
    assert ["a / b" in lines[4], "a / c" in lines[5]] == [True, True]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0471, "0.047"), (1.234, "1.23"), (21.64, "21.6"), (math.nan, "–")]
)
def test_seconds_have_three_digits(value, text) -> None:
    assert seconds(value) == text


def test_remarks_tell_what_the_figures_hide() -> None:
    warm_cold = run("a", 0, answer(1.0), phase="cold")
    busy = run("b", 0, answer(1.0), phase="cold", client_cpu=1.0)
    documents = run("a", 0, answer(1.0), scenario="longdoc", phase="", unasked=2)
    found = remarks(
        [*BOTH, warm_cold, busy, documents], [probed("a", left_out=("ignore_eos",)), probed("b")]
    )
    text = "\n".join(found)

    assert "a refuses ignore_eos" in text
    assert "lengths differ" in text
    assert "agents warm @4, b: 1× 503 queue_full." in text
    assert "agents warm @4, b, the first error: The line is full." in text
    assert "agents cold @4, a: it had these prompts in its cache already" in text
    assert "agents cold @4, b: asking took 50% of a core" in text
    assert "longdoc @4, a: the row's time was over" in text
    assert "first tokens are the documents', gaps the streams'" in text


def test_conversations_say_how_much_was_computed_twice() -> None:
    turns = [
        replace(answer(1.0, usage={**USAGE, "prompt_tokens": size}, cached=cached), kind=kind)
        for kind, size, cached in (("turn 1", 100, 0), ("turn 2", 250, 96))
    ]
    (line,) = remarks([run("a", 0, *turns, scenario="turns", phase="")], [probed("a")])

    assert "have 250 tokens at their ends; 254 were computed" in line


def test_the_document_has_every_request_and_no_key() -> None:
    text = document(PLAN, [probed("a"), probed("b")], BOTH, {"onegpu": "1.0"})
    found = json.loads(text, parse_constant=pytest.fail)

    assert "secret" not in text
    assert (found["seed"], found["rounds"], found["tokens_per_word"]) == (7, 2, 1.2)
    assert [one["server"] for one in found["runs"]] == ["a", "b", "a", "b"]
    assert found["runs"][1]["round"] == 1
    refused = found["runs"][3]["outcomes"][1]
    assert (refused["code"], refused["message"]) == ("queue_full", "The line is full.")
    assert found["runs"][0]["outcomes"][0]["gaps_ms"] == "100.0 200.0"
    (row,) = found["table"].values()
    assert row[1]["ratios"]["first_p95"] == 0.375
    assert row[0]["ratios"] == {}


def test_the_chart_is_a_drawing_with_all_that_is_there() -> None:
    measured = [
        *(replace(one, server=one.server.replace("b", "<b> & co")) for one in BOTH),
        run("a", 0, Outcome(status=503, code="full"), phase="cold"),
    ]
    root = ET.fromstring(chart(cells(measured), "a title & more"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    width = float(root.attrib["width"])

    assert {"a", "<b> & co", "a title & more", "agents warm @4", "agents cold @4"} <= set(texts)
    assert "1 of 1 failed" in texts
    fills = {element.attrib["fill"] for element in root.iter(f"{SVG}rect")}
    assert set(COLOURS[:2]) <= fills
    for element in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.attrib.get(name, "0")) <= width
        assert "nan" not in "".join(element.attrib.values())


def test_a_chart_of_one_value_of_none_and_of_gaps_of_nothing() -> None:
    one = cells([run("a", 0, replace(answer(1.0), arrivals=[1.0]))])
    none = cells([run("a", 0, Outcome(status=0, code="ConnectionRefusedError"), seconds=0.0)])

    together = cells([run("a", 0, replace(answer(1.0), arrivals=[1.0, 1.0, 1.5]))])

    for rows in (one, none, together):
        assert ET.fromstring(chart(rows, "")).tag == f"{SVG}svg"
