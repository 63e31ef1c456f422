"""Passes over the weights, which cost more than the rows in them: who shares one, counted."""

import pytest

from tests.factories import LoopHarness, make_limits, make_request

LIMITS = make_limits(slots=4, n_ctx=256, max_rows=512, prefill_rows=512, prefill_rows_decoding=128)


@pytest.mark.parametrize("users", [4, 16])
def test_streams_share_every_pass(users):
    harness = LoopHarness(LIMITS)
    for number in range(users):
        harness.submit(make_request(chr(97 + number) * 58, 48))
    harness.run()
    counters = harness.scheduler.counters
    assert counters["prefill_rows"] == users * 58
    assert counters["decode_rows"] == users * 47
    assert counters["steps"] == users // 4 * 48


def test_prompts_that_come_beside_a_stream_take_no_pass_of_their_own():
    harness = LoopHarness(LIMITS)
    harness.submit(make_request("s" * 58, 100))
    for letter in "abc":
        harness.step(8)
        harness.submit(make_request(letter * 58, 8))
    harness.run()
    counters = harness.scheduler.counters
    assert counters["prefill_rows"] == 4 * 58
    assert (counters["prefill_steps"], counters["prefill_steps_decoding"]) == (4, 3)
    assert counters["decode_rows"] == 99 + 3 * 7
    assert counters["steps"] == 100
