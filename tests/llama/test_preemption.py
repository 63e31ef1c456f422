"""A preempted sequence goes on with the cells and the sampler that it had, on a real context."""

from __future__ import annotations

import pytest

from server.core.events import Delta
from server.core.request import SamplingParams
from server.engine.host_memory import HostBudget
from tests.factories import LoopHarness, make_limits, make_request
from tests.llama.conftest import SCRIPTED, layouts
from tests.llama.driving import prompt_of

pytestmark = pytest.mark.native

SAMPLING = [
    {},
    {"top_k": 40, "xtc_probability": 0.3},
    {"repeat_penalty": 1.3, "presence_penalty": 0.4, "repeat_last_n": 100},
    {"dry_multiplier": 0.8, "dry_allowed_length": 1},
    {"mirostat": 1},
    {"mirostat": 2},
]


@pytest.mark.parametrize("params", SAMPLING, ids=lambda params: "-".join(params) or "plain")
@layouts
@pytest.mark.parametrize("moments", [(), (3,), (1, 35, 70)])
def test_what_is_drawn_is_what_would_have_been_drawn(make_driver, layout, params, moments):
    """Of a scripted model, whose logits do not depend on where cells are; hot, so that every draw tells."""
    limits = make_limits(slots=1, n_ctx=256)
    real = make_driver(SCRIPTED, **layout, slots=1).backend
    harness = LoopHarness(limits, host=HostBudget(1 << 30), real=real)

    def ask(seed):
        sampling = SamplingParams(**{"temperature": 9.0, "seed": seed} | params)
        fields = {"sampling": sampling, "rank": (2, 0.0, 0), "ignore_eos": True}
        return make_request(prompt_of(1, 80), 120, **fields)

    def tokens(request):
        events = harness.events.get(request.request_id, ())
        return [token for one in events if isinstance(one, Delta) for token in one.token_ids]

    whole, other = ask(5), ask(6)
    for request in (whole, other):
        harness.submit(request)
        harness.run()
        real.truncate(0, 0)
        harness.scheduler.pool.evict_idle()
    again = ask(5)
    harness.submit(again)
    for moment in moments:
        while len(tokens(again)) < moment:
            harness.step()
        harness.submit(make_request(prompt_of(moment + 2, 100), 5, rank=(0, 0.0, 0)))
        harness.step()
        assert harness.scheduler.preempted == 1
    harness.run()
    assert harness.scheduler.counters["resumed"] == len(moments)
    assert tokens(again) == tokens(whole)
    assert tokens(other) != tokens(whole)
