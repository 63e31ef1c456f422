"""Random arrivals, aborts and failures: books balance after every step, no answer is wrong."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from server.core.errors import QueueTimeout
from server.core.events import Delta, Failed, Finished, FinishReason, Started
from server.core.request import SamplingParams
from server.engine.host_memory import HostBudget
from server.engine.pins import Pin
from server.engine.plan import DecodeCode
from server.engine.preemption import MOST_PREEMPTIONS
from tests.factories import (
    LoopHarness,
    answer_of,
    hashed_successor,
    make_limits,
    make_request,
    mostly_a,
    state_size,
)

N_CTX = 240
LONG = (
    "a system prompt so long that others wait until it is computed, rather than compute it again. "
)
AGENTS = st.sampled_from(
    [
        "",
        "system prompt number one ",
        "system prompt number two, longer than one ",
        LONG,
        LONG
        + "This one goes on, and they who share it wait for those who share all that is above. ",
    ]
)
OWN = st.text("abc", min_size=1, max_size=20)
PROMPTS = st.builds(lambda shared, own: shared + own, AGENTS, OWN)


def call_seconds(plan):
    """Rows cost so little that much is drafted."""
    return 0.001 + 0.00001 * (plan.decode_rows + plan.prefill_rows + plan.draft_rows)


def up_to_stop(tokens, stops):
    """Return the tokens up to the one that completes a stop string."""
    text = bytes(tokens).decode()
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    return tokens[: min(ends, default=len(tokens))]


class EngineMachine(RuleBasedStateMachine):
    successor = staticmethod(hashed_successor)
    draft_rows = 0

    @initialize(
        slots=st.sampled_from([4, 7]),
        align=st.sampled_from([1, 8]),
        cold=st.sampled_from([0, 1, 4]),
        split=st.booleans(),
    )
    def begin(self, slots, align, cold, split):
        self.budget = HostBudget(5 * state_size(150))
        self.harness = LoopHarness(
            make_limits(
                slots=slots,
                n_ctx=N_CTX,
                kv_cells=450,
                max_rows=24,
                draft_rows=self.draft_rows,
                reuse_align=align,
                cold_steps=cold,
                warm_cells=70,
            ),
            host=self.budget,
            pins=lambda: self.pins,
            successor=self.successor,
            cost=call_seconds,
            split=split,
        )
        self.pins = []
        self.others = 0
        self.requests = {}
        self.broken = set()

    @rule(
        agent=AGENTS,
        own=OWN,
        public=st.booleans(),
        max_tokens=st.sampled_from([1, 2, 3, 5, 8, 13, 32, 60]),
        reuse=st.booleans(),
        rank=st.tuples(st.integers(-1, 2), st.floats(0, 9), st.integers(0, 9)),
        scope=st.sampled_from(["", "a", "b"]),
        seed=st.none() | st.integers(0, 9),
        stop=st.sampled_from([(), (), ("b",), ("ab", "z"), ("aaba",)]),
    )
    def arrive(self, agent, own, public, max_tokens, *, reuse, rank, scope, seed, stop):
        request = make_request(
            agent + own,
            min(max_tokens, N_CTX - len(agent + own)),
            reuse_prefix=reuse,
            rank=rank,
            cache_scope=scope,
            public_tokens=len(agent) if public else 0,
            sampling=SamplingParams(seed=seed),
            stop=stop,
        )
        self.requests[self.harness.submit(request)] = request

    @rule(prompt=PROMPTS, wait=st.sampled_from([0.0, 0.015, 0.05]))
    def arrive_in_a_hurry(self, prompt, wait):
        request = make_request(prompt, 4, deadline=self.harness.clock.now + wait)
        self.requests[self.harness.submit(request)] = request

    @rule(prompt=PROMPTS, good_samples=st.integers(0, 3), at_open=st.booleans())
    def arrive_broken(self, prompt, good_samples, at_open):
        request = make_request(prompt, 8)
        if at_open:
            self.harness.backend.fail_open.add(request.request_id)
        else:
            self.harness.backend.fail_sample[request.request_id] = good_samples
        self.broken.add(request.request_id)
        self.requests[self.harness.submit(request)] = request

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data):
        self.harness.loop.abort(data.draw(st.sampled_from(sorted(self.requests))))

    @rule(code=st.sampled_from([DecodeCode.NO_CELLS, DecodeCode.ABORTED, DecodeCode.FAILED]))
    def next_call_fails(self, code):
        calls = len(self.harness.backend.plans)
        if self.harness.backend.codes.get(calls - 1) is not DecodeCode.FAILED:
            self.harness.backend.codes[calls] = code

    @rule(held=st.booleans())
    def hold(self, held):
        self.harness.loop.hold(held=held)

    @rule(agents=st.lists(AGENTS, max_size=3))
    def pin(self, agents):
        self.pins = [Pin("agent", list(agent.encode())) for agent in agents]
        self.harness.loop.warm()

    @rule(save=st.booleans(), restore=st.booleans(), copy=st.booleans())
    def copies_fail(self, save, restore, copy):
        backend = self.harness.backend
        backend.save_fails, backend.restore_fails = save, restore
        backend.copy_fails = copy and not backend.info.shares_cells

    @rule(cells=st.integers(0, 1000), others=st.booleans())
    def host_memory_shrinks_or_grows(self, cells, others):
        """By its own share, or because other engines take theirs. Shrinking shows at the next step."""
        memory = self.harness.loop.memory
        if others:
            taken = min(state_size(cells), self.budget.limit - self.budget.used)
            assert self.budget.take(taken)
            self.others += taken
        else:
            self.budget.give(self.others)
            self.others = 0
        assert self.budget.used == memory.nbytes + self.others

    @rule(times=st.integers(1, 5))
    def step(self, times):
        for _ in range(times):
            # A second failure in a row would rightly kill the engine.
            calls = len(self.harness.backend.plans)
            if self.harness.backend.codes.get(calls - 1) is DecodeCode.FAILED:
                self.harness.backend.codes.pop(calls, None)
            self.harness.step()

    @invariant()
    def books_balance(self):
        self.harness.check()
        scheduler = self.harness.scheduler
        held = {slot.index: slot.cells for slot in scheduler.pool.slots if slot.sequence is None}
        for index, cells in held.items():
            assert len(self.harness.backend.cells[index]) == cells or any(
                edit.slot == index for edit in scheduler._edits
            )
        running = {sequence.slot for sequence in scheduler.running}
        assert set(self.harness.backend.open_slots) == running
        gone = {one.request.request_id: one for one in scheduler.waiting if one.preempted}
        assert scheduler.preempted == len(gone)
        assert set(self.harness.backend.aside) == set(gone)
        for sequence in gone.values():
            assert sequence.preemptions > 0
            assert sequence.preemptions <= MOST_PREEMPTIONS or sequence.background

    @invariant()
    def events_are_in_order(self):
        for events in self.harness.events.values():
            kinds = [type(event) for event in events]
            assert all(kind is Delta for kind in kinds[1:-1])
            assert kinds[0] in (Started, Failed, Finished)

    def teardown(self):
        self.harness.backend.codes.clear()
        self.harness.loop.hold(held=False)
        self.harness.run()
        scheduler = self.harness.scheduler
        assert not scheduler.has_work
        assert scheduler.pool.reserved_cells == 0
        memory = self.harness.loop.memory
        memory.close()
        assert self.budget.used == self.others
        for request_id, request in self.requests.items():
            events = self.harness.events[request_id]
            assert sum(isinstance(event, Finished | Failed) for event in events) == 1
            self.answer_is_right(request, events)

    def answer_is_right(self, request, events):
        tokens = [token for event in events for token in getattr(event, "token_ids", ())]
        expected = up_to_stop(answer_of(request, self.successor), request.stop)
        assert tokens == expected[: len(tokens)]
        last = events[-1]
        if isinstance(last, Failed):
            waited = isinstance(last.error, QueueTimeout)
            assert waited or request.request_id in self.broken, last.error
        if isinstance(last, Finished) and last.reason is not FinishReason.ABORTED:
            assert request.request_id not in self.broken
            assert tokens == expected


class DraftingMachine(EngineMachine):
    """Answers repeat themselves, so that drafts are made, and come true in part."""

    successor = staticmethod(mostly_a)
    draft_rows = 12


EngineMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
DraftingMachine.TestCase.settings = EngineMachine.TestCase.settings
TestEngineMachine = EngineMachine.TestCase
TestDraftingMachine = DraftingMachine.TestCase
