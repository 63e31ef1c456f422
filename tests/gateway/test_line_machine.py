"""Keys, buckets, line and slot pool together, in any order of arrivals, ends, failures and times.

The engine is the real loop and scheduler over a scripted backend, stepped by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.core.errors import DeadlineUnreachable, InvalidRequest, QueueFull, RateLimited
from server.core.events import Failed, Finished, Started
from server.gateway.fair_queue import Priority
from server.gateway.line import Line, LineLimits
from server.gateway.rate_limit import Grant, RateLimiter, RateLimits
from server.gateway.ticket import SeatState, Standing, Ticket
from tests.factories import LoopHarness, make_limits, make_request

KEYS = {
    "": RateLimits(),
    "a": RateLimits(requests_per_minute=600, burst=20, tokens_per_minute=4000),
    "b": RateLimits(tokens_per_minute=900, max_concurrent=3),
}
SLOTS, QUEUE = 2, 6


@dataclass(eq=False)
class Asked:
    """One request, with everything that it holds."""

    key: str
    ticket: Ticket
    grant: Grant
    sizes: list[tuple[int, int]]
    ids: dict[str, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    used: int = 0


class Admitting(RuleBasedStateMachine):
    """Two models share one line."""

    @initialize(reserved=st.integers(0, 1))
    def begin(self, reserved):
        self.engines = [
            LoopHarness(make_limits(slots=SLOTS, n_ctx=64, kv_cells=100)) for _ in range(2)
        ]
        for engine in self.engines:
            engine.clock = engine.loop._clock = self.engines[0].clock
        self.clock = self.engines[0].clock
        self.rate = RateLimiter(self.clock)
        self.line = Line(LineLimits(QUEUE, interactive_slots=reserved, aging=0.5), self.clock)
        self.lanes = [self.line.open_lane(SLOTS) for _ in self.engines]
        self.asked: list[tuple[int, Asked]] = []
        self.reserved = reserved
        self.began = self.clock.now
        self.spent = dict.fromkeys(KEYS, 0)

    # What clients do

    @rule(
        model=st.integers(0, 1),
        key=st.sampled_from(sorted(KEYS)),
        priority=st.sampled_from(list(Priority)),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 24)), min_size=1, max_size=3),
        hurry=st.sampled_from([None, None, -1.0, 0.05, 60.0]),
    )
    def enter(self, model, key, priority, weight, sizes, hurry):
        try:
            grant = self.rate.take(key, KEYS[key])
        except RateLimited:
            return
        deadline = None if hurry is None else self.clock.now + hurry
        lane = self.lanes[model]
        try:
            ticket = lane.admit(len(sizes), Standing(key, priority, weight), deadline=deadline)
        except (QueueFull, DeadlineUnreachable) as error:
            assert error.retry_after is not None  # noqa: PT017
            assert 1 <= error.retry_after <= 120  # noqa: PT017
            grant.release()
            return
        self.asked.append((model, Asked(key, ticket, grant, sizes)))

    @precondition(lambda self: any(not one.ticket.seats for _, one in self.asked))
    @rule(pick=st.integers(0, 99))
    def price(self, pick):
        unpriced = [pair for pair in self.asked if not pair[1].ticket.seats]
        model, one = unpriced[pick % len(unpriced)]
        try:
            one.grant.reserve(sum(map(sum, one.sizes)))
            costs = [prompt / 4 + output for prompt, output in one.sizes]
            one.ticket.price(costs, lambda index, rank: self._submit(model, one, index, rank))
        except (RateLimited, InvalidRequest, DeadlineUnreachable):
            self._end(model, one, used=None)

    @precondition(lambda self: self.asked)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick):
        model, one = self.asked[pick % len(self.asked)]
        self._end(model, one, used=one.used if one.ticket.started else None)

    @rule(model=st.integers(0, 1), times=st.integers(1, 6))
    def step(self, model, times):
        for _ in range(times):
            self._step(model)

    @precondition(lambda self: any(one.ids for _, one in self.asked))
    @rule(pick=st.integers(0, 99))
    def sampler_fails(self, pick):
        ids = [(m, name) for m, one in self.asked for name in one.ids]
        model, name = ids[pick % len(ids)]
        self.engines[model].backend.fail_sample.setdefault(name, 0)

    @rule(seconds=st.sampled_from([0.1, 1.0, 30.0]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    # What the service does

    def _submit(self, model, one, index, rank):
        prompt, output = one.sizes[index]
        request = make_request([65 + index] * prompt, output, rank=rank)
        one.ids[self.engines[model].submit(request)] = index

    def _step(self, model):
        engine = self.engines[model]
        before = {name: len(events) for name, events in engine.events.items()}
        engine.step()
        for name, events in list(engine.events.items()):
            for event in events[before.get(name, 0) :]:
                self._deliver(model, name, event)

    def _deliver(self, model, name, event):
        one = next((one for m, one in self.asked if m == model and name in one.ids), None)
        if one is None:
            return
        index = one.ids[name]
        if isinstance(event, Started):
            one.ticket.note_started(index)
        elif isinstance(event, Finished | Failed):
            one.used += event.usage.prompt_tokens + event.usage.completion_tokens
            one.ended.add(index)
            one.ticket.note_ended(index)
            if len(one.ended) == len(one.sizes):
                self._end(model, one, used=one.used)

    def _end(self, model, one, used):
        """Do what `Generation.close` does: the one place where everything is given back."""
        self.asked.remove((model, one))
        for name, index in one.ids.items():
            if index not in one.ended:
                self.engines[model].loop.abort(name)
        self.spent[one.key] += used or 0
        one.ticket.release(cost=used)
        one.grant.release(used)
        one.ticket.release()
        one.grant.release()

    # What must hold after every step

    @invariant()
    def places_are_conserved(self):
        if not hasattr(self, "line"):
            return
        held = sum(one.ticket.places for _, one in self.asked)
        assert self.line.outstanding == held
        assert self.line.waiting <= QUEUE
        counters = self.line.counters
        assert counters["admitted"] - counters["released"] == len(self.asked)
        unbegun = dict.fromkeys(KEYS, 0)
        for _, one in self.asked:
            states = [seat.state for seat in one.ticket.seats]
            begun = sum(state is not SeatState.WAITING for state in states)
            unbegun[one.key] += one.ticket.places - begun
        assert self.line._unbegun == {key: count for key, count in unbegun.items() if count}

    @invariant()
    def lanes_know_what_their_engines_have(self):
        if not hasattr(self, "line"):
            return
        for model, lane in enumerate(self.lanes):
            mine = [one for m, one in self.asked if m == model]
            inside = {
                seat
                for one in mine
                for seat in one.ticket.seats
                if seat.state in (SeatState.BEGUN, SeatState.STARTED)
            }
            assert set(lane._inside) == inside
            assert set(lane._ahead) == {s for s in inside if s.state is SeatState.BEGUN}
            assert len(lane._ahead) <= 2 * SLOTS + QUEUE
            assert sum(lane._by_class.values()) == len(inside)
            assert lane.ended_places == sum(len(one.ended) for one in mine)
            waiting = [s for o in mine for s in o.ticket.seats if s.state is SeatState.WAITING]
            assert len(lane._order) == len(waiting)
            live = sum(one.live for one in lane._order._classes.values())
            assert live == len(waiting) + len(inside)

    @invariant()
    def no_slot_waits_for_the_line(self):
        """Who is priced and may begin is in the engine as long as it can take more."""
        if not hasattr(self, "line"):
            return
        for lane in self.lanes:
            if len(lane._order) and len(lane._inside) < 2 * SLOTS:
                others = len(lane._inside) - lane._by_class[Priority.INTERACTIVE]
                assert self.reserved
                assert others >= SLOTS - self.reserved
                assert not lane._order._classes[Priority.INTERACTIVE].waiting

    @invariant()
    def tokens_are_conserved(self):
        if not hasattr(self, "line"):
            return
        for key in KEYS:
            account = self.rate._accounts.get(key)
            if account is None:
                continue
            held = [one.grant for _, one in self.asked if one.key == key]
            assert account.running == len(held)
            if account.tokens is not None:
                reserved = sum(grant.reserved for grant in held)
                minutes = (self.clock.now - self.began) / 60
                most = account.tokens.capacity * (1 + minutes)
                assert self.spent[key] + reserved + account.tokens.level <= most + 1e-6
                assert account.tokens.level >= -1e-6

    def teardown(self):
        if not hasattr(self, "line"):
            return
        for _ in range(3000):
            for model, one in list(self.asked):
                if not one.ticket.seats:
                    self._end(model, one, used=None)
            if not self.asked:
                break
            self._step(0)
            self._step(1)
        assert not self.asked, "somebody waits for ever"
        for engine in self.engines:
            engine.run()
            assert engine.scheduler.pool.reserved_cells == 0
        assert (self.line.outstanding, self.line.waiting) == (0, 0)
        assert not self.line._unbegun
        for lane in self.lanes:
            assert not any(one.flows for one in lane._order._classes.values())


TestAdmitting = Admitting.TestCase
TestAdmitting.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
