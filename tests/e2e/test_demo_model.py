"""The demo model answers what it was taught, over HTTP: the held-out check, in part."""

from __future__ import annotations

import pytest

from check_demo_model import http_ask
from demo_model.grading import TARGETS, grade, questions, sampled, table
from tests.e2e.live import LiveServer

QUESTIONS = 200
"""Of each family: all calls; scripts/check_demo_model.py --base-url URL asks everything."""


@pytest.mark.native
@pytest.mark.slow
def test_the_demo_model_keeps_its_promises(server: LiveServer) -> None:
    promised = [question for question in questions() if question.family in TARGETS]
    with http_ask(f"{server.url}/v1") as ask:
        scores = grade(ask, sampled(promised, QUESTIONS), parallel=4)
    assert {score.family for score in scores} == set(TARGETS)
    assert not [score for score in scores if score.missed], "\n" + table(scores)
