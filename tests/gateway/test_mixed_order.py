"""Line and engine together under the mixed load of the benchmark: who begins when, on a machine whose steps take time.

24 users over four slots: six in ten ask something short, three an agent with 1,400 tokens of instructions, one about a
document of 2,200. Nothing here is measured: the clock moves by what each decode call is said to take.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from server.core.events import Event, Finished, Started
from server.core.request import GenerationRequest
from server.engine.foresight import prefill_seconds
from server.engine.host_memory import HostBudget
from server.gateway.entitlement import cost
from server.gateway.line import Line, LineLimits
from server.gateway.ticket import Standing, Ticket
from tests.engine.machines import CPU, machine, timed
from tests.factories import LoopHarness, make_limits, make_request

USERS, SLOTS = 24, 4
AGENT, QUESTION, SHORT, DOCUMENT = 1400, 24, 58, 2200
LIMITS = {
    "slots": SLOTS,
    "n_ctx": 4096,
    "max_rows": 512,
    "prefill_rows": 512,
    "prefill_rows_decoding": 512,
}


@dataclass
class Asked:
    """One request on its way; times are seconds of the machine's clock."""

    kind: str
    request: GenerationRequest
    ticket: Ticket
    asked: float
    started: float = -1.0
    first: float = -1.0


class Mixed:
    """Users who each ask again when they have their answer, until all tasks are taken."""

    def __init__(self, passing: float, seed: int) -> None:
        self.harness = LoopHarness(make_limits(**LIMITS), host=HostBudget(10**9))
        timed(self.harness, machine(CPU))
        self.harness.submit(make_request([65] * 900, 4))
        self.harness.run()
        self.before = self.harness.scheduler.counters["prefill_rows"]
        line = Line(LineLimits(64, passing=passing), self.harness.clock)
        self.lane = line.open_lane(SLOTS)
        self.dice = random.Random(seed)
        self.tasks = ["short"] * 30 + ["agent"] * 15 + ["document"] * 5
        self.dice.shuffle(self.tasks)
        self.agent = self.text(AGENT)
        self.asked: dict[str, Asked] = {}
        self.seen: dict[str, int] = {}

    def text(self, length: int) -> list[int]:
        return [self.dice.randrange(32, 127) for _ in range(length)]

    def ask(self) -> None:
        """Let a user take the next task."""
        if not self.tasks:
            return
        kind = self.tasks.pop()
        prompt = {
            "short": lambda: self.text(SHORT),
            "agent": lambda: self.agent + self.text(QUESTION),
            "document": lambda: self.text(DOCUMENT),
        }[kind]()
        request = make_request(prompt, 32 if kind == "agent" else 48)
        loop, clock = self.harness.loop, self.harness.clock
        ticket = self.lane.admit(1, Standing())
        self.asked[request.request_id] = Asked(kind, request, ticket, clock.now)
        ticket.price(
            [cost(len(prompt), request.max_tokens)],
            lambda _index, rank: loop.submit(replace(request, rank=rank)),
            prefill_seconds(request, loop.scheduler, loop.memory),
        )

    def run(self) -> list[Asked]:
        """Let everybody be answered; return all in the order of their first tokens."""
        for _ in range(USERS):
            self.ask()
        for _ in range(10_000):
            self.harness.loop.step()
            for request_id in list(self.asked):
                events = self.harness.events.get(request_id, [])
                for event in events[self.seen.get(request_id, 0) :]:
                    self.hear(self.asked[request_id], event)
                self.seen[request_id] = len(events)
            if not self.lane.outstanding:
                return sorted(self.asked.values(), key=lambda one: one.first)
        raise AssertionError("somebody is not answered")

    def hear(self, one: Asked, event: Event) -> None:
        now = self.harness.clock.now
        if isinstance(event, Started):
            one.started = now
            one.ticket.note_started(0)
        elif isinstance(event, Finished):
            one.ticket.note_ended(0)
            one.ticket.release()
            self.ask()
        elif one.first < 0:
            one.first = now


def waits(order: list[Asked]) -> list[float]:
    return sorted(one.first - one.asked for one in order)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_most_are_answered_in_a_fraction_of_the_time_and_the_last_ones_not_much_later(seed):
    passing, arriving = Mixed(60.0, seed), Mixed(0.0, seed)
    with_passing, in_order = waits(passing.run()), waits(arriving.run())
    half, most = len(in_order) // 2, int(len(in_order) * 0.95)
    assert with_passing[half] < 0.5 * in_order[half]
    assert with_passing[most] < 1.4 * in_order[most]
    assert sum(with_passing) < 0.8 * sum(in_order)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_short_ones_pass_and_nobody_is_passed_by_those_who_come_later_than_the_bound(seed):
    mixed = Mixed(20.0, seed)
    order = sorted(mixed.run(), key=lambda one: one.started)
    for index, one in enumerate(order):
        for before in order[:index]:
            assert before.asked <= one.asked + 20.0
    first = [one.kind for one in order if one.asked == order[0].asked][SLOTS:]
    assert first.index("document") > max(
        index for index, kind in enumerate(first) if kind == "short"
    )


@pytest.mark.parametrize("passing", [0.0, 60.0])
def test_every_prompt_row_is_computed_once(passing):
    mixed = Mixed(passing, 1)
    order = mixed.run()
    rows = mixed.harness.scheduler.counters["prefill_rows"] - mixed.before
    own = {"short": SHORT, "agent": QUESTION, "document": DOCUMENT}
    assert 0 <= rows - AGENT - sum(own[one.kind] for one in order) <= 8 * len(order)
