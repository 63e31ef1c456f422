"""Keys, buckets, line and slot pools together: what is taken is given back, whatever happens.

Everything is the real thing, from the key's text to the scheduler: `GenerationService` over
`InProcessEngine`s that are stepped by hand, a scripted backend, and a time that stands still.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.core.errors import (
    DeadlineUnreachable,
    EngineDead,
    EngineStalled,
    EngineTimeout,
    GenerationFailed,
    InvalidApiKey,
    InvalidRequest,
    ModelLoading,
    QueueFull,
    QueueTimeout,
    RateLimited,
    TotalTimeout,
)
from server.engine.interface import EngineState
from server.engine.plan import DecodeCode
from server.gateway.agent import Agent
from server.gateway.auth import Authenticator
from server.gateway.failures import FailureLimiter
from server.gateway.fair_queue import Priority
from server.gateway.generation import Generation
from server.gateway.host import Host, HostSpec
from server.gateway.hosts import HostManager
from server.gateway.line import Line, LineLimits
from server.gateway.memory import Budget, Footprint
from server.gateway.prompter import Prompter
from server.gateway.routing import ModelRouter, Served
from server.gateway.service import GenerationService, ServiceLimits
from server.gateway.spec import GenerationSpec, TokenPrompt
from server.gateway.telemetry import NullTelemetry
from server.gateway.ticket import SeatState, Ticket
from server.store.connection import open_database
from server.store.key_view import KeyView
from server.store.keys import KeyLimits, KeyRepository
from tests.factories import FakeClock, ScriptedBackend, make_limits
from tests.gateway.stepping import Loop, Stepped

LIMITS = {
    "plain": KeyLimits(),
    "quick": KeyLimits(priority="interactive", rpm=60, burst=3, tpm=400, weight=3.0),
    "night": KeyLimits(priority="batch", tpm=200, max_concurrent=3, weight=0.5),
}
SLOTS, QUEUE, CELLS = 2, 6, 100
MODELS = ("one", "two")
EXPECTED = (
    *(DeadlineUnreachable, EngineDead, EngineStalled, EngineTimeout, GenerationFailed),
    *(InvalidRequest, ModelLoading, QueueFull, QueueTimeout, RateLimited, TotalTimeout),
)


class Told(NullTelemetry):
    """Tokens that were told of."""

    def __init__(self) -> None:
        self.tokens = 0

    def usage(self, prompt: int, cached: int, completion: int) -> None:
        self.tokens += prompt + completion


class Asked:
    """One client's request: opened, read to its end, closed."""

    def __init__(self, machine: Admitting, key: str, spec: GenerationSpec) -> None:
        self.key = key
        self.spec = spec
        self.may_tokenize = asyncio.Event()
        self.generation: Generation | None = None
        self.failure: BaseException | None = None
        self.task = machine.loop.create_task(self._run(machine))

    async def _run(self, machine: Admitting) -> None:
        try:
            self.generation = await machine.service.open(self.spec)
            try:
                async for _ in self.generation.events():
                    pass
            finally:
                self.generation.close()
        except EXPECTED as error:
            self.failure = error


class Admitting(RuleBasedStateMachine):
    """Two models share one line; three keys come and go."""

    @initialize(reserved=st.integers(0, 1))
    def begin(self, reserved):
        self.clock = FakeClock()
        self.loop = Loop(self.clock)
        self.directory = tempfile.TemporaryDirectory()
        self.database = open_database(Path(self.directory.name))
        self.keys = KeyRepository(self.database)
        self.view = KeyView(Path(self.directory.name))
        self.door = Authenticator(self.view, self.clock, FailureLimiter(self.clock, at_once=10**6))
        self.secrets: dict[str, str] = {}
        for name in LIMITS:
            self.create_key(name)
        self.reserved = reserved
        self.line = Line(LineLimits(QUEUE, interactive_slots=reserved, aging=0.5), self.clock)
        self.engines: dict[str, Stepped] = {}
        self.tickets: list[Ticket] = []
        hosts = [self._host(name) for name in MODELS]
        self.hosts = HostManager(hosts, Budget(), self.clock)
        served = [Served(Agent((h.spec.name,), n_ctx=64), h, self._prompter()) for h in hosts]
        self.told = Told()
        self.service = GenerationService(
            ModelRouter(served),
            self.hosts,
            self.line,
            ServiceLimits(connect_timeout=5.0, read_timeout=50.0, stall_after=1000.0),
            self.clock,
            telemetry=self.told,
        )
        self.service.in_thread = self._when_told  # type: ignore[method-assign, assignment]
        self.asked: list[Asked] = []
        self.number = 0
        self.began = self.clock.now
        self.spent: Counter[str] = Counter()
        """Tokens by key that ended requests have used."""
        self.counted: Counter[str] = Counter()
        """Requests by key that got a slot and have ended."""
        self._settle_in()

    def _settle_in(self):
        async def load():
            for host in self.hosts.hosts:
                await self.hosts.load(host)

        self.loop.run_until_complete(load())

    def _host(self, name: str) -> Host:
        def make() -> Stepped:
            self.engines[name] = Stepped(
                make_limits(slots=SLOTS, n_ctx=64, kv_cells=CELLS), self.clock
            )
            return self.engines[name]

        spec = HostSpec(name, SLOTS, 64, CELLS, Footprint(cpu=1), make)
        return Host(spec, self.line.open_lane(SLOTS), self.clock.now)

    def _prompter(self) -> Prompter:
        prompter, backend = Prompter(), ScriptedBackend(make_limits())
        prompter.bind(backend.info, backend.tokenizer)
        return prompter

    async def _when_told(self, function, *args):
        """Tokenize when the test says so."""
        asked = next(one for one in self.asked if one.task is asyncio.current_task())
        await asked.may_tokenize.wait()
        return function(*args)

    def settle(self):
        """Let everybody do what they can."""

        async def turn():
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turn())
        for one in [one for one in self.asked if one.task.done()]:
            self.asked.remove(one)
            self._account(one)

    def _account(self, one: Asked):
        """Note what an ended request was charged; anything unexpected fails here."""
        if not one.task.cancelled() and (error := one.task.exception()) is not None:
            raise error
        generation = one.generation
        if generation is not None and generation._ticket.started:
            self.counted[one.key] += 1
            self.spent[one.key] += generation.prompt_tokens + generation.completion_tokens

    # Keys

    def create_key(self, name):
        self.secrets[name] = self.keys.create(name, self.clock.wall(), limits=LIMITS[name]).secret

    @rule(name=st.sampled_from(sorted(LIMITS)), how=st.sampled_from(["revoke", "rotate"]))
    def change_key(self, name, how):
        """Whoever is in stays in; the old secret opens nothing any more."""
        old = self.secrets[name]
        if how == "revoke":
            self.keys.revoke([name], self.clock.wall())
            self.create_key(name)
        else:
            self.secrets[name] = self.keys.rotate(name, self.clock.wall()).secret
        for text in (old, old[:-1] + "0", ""):
            try:
                self.door.authenticate(text, "192.0.2.1")
            except InvalidApiKey:
                continue
            raise AssertionError("let in without a key")

    # What clients do

    @rule(
        model=st.sampled_from(MODELS),
        name=st.sampled_from(sorted(LIMITS)),
        prompts=st.lists(st.integers(1, 40), min_size=1, max_size=2),
        output=st.integers(1, 24),
        n=st.sampled_from([1, 1, 1, 2]),
        hurry=st.sampled_from([None] * 9 + [-1.0, 0.05, 3.0]),
        at_once=st.booleans(),
    )
    def enter(self, model, name, prompts, output, n, hurry, at_once):
        principal = self.door.authenticate(self.secrets[name], "192.0.2.1")
        self.number += 1
        spec = GenerationSpec(
            f"r{self.number}",
            model,
            [TokenPrompt([65 + i] * size) for i, size in enumerate(prompts)],
            max_tokens=output,
            n=n,
            principal=principal,
            seconds=hurry,
        )
        one = Asked(self, principal.key_id, spec)
        self.asked.append(one)
        if at_once:
            one.may_tokenize.set()
        self.settle()

    @precondition(lambda self: any(not one.may_tokenize.is_set() for one in self.asked))
    @rule(pick=st.integers(0, 99))
    def price(self, pick):
        waiting = [one for one in self.asked if not one.may_tokenize.is_set()]
        waiting[pick % len(waiting)].may_tokenize.set()
        self.settle()

    @precondition(lambda self: self.asked)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick):
        self.asked[pick % len(self.asked)].task.cancel()
        self.settle()

    @precondition(lambda self: self.asked)
    @rule(pick=st.integers(0, 99), model=st.sampled_from(MODELS))
    def cancel_as_a_step_ends(self, pick, model):
        self.engines[model].step()
        self.asked[pick % len(self.asked)].task.cancel()
        self.settle()

    # What engines do

    @rule(model=st.sampled_from(MODELS), times=st.integers(1, 6))
    def step(self, model, times):
        for _ in range(times):
            self.clock.now += 0.01
            self.engines[model].step()
            self.settle()

    @precondition(lambda self: self.asked)
    @rule(pick=st.integers(0, 99), where=st.sampled_from(["open", "sample"]))
    def a_sampler_fails(self, pick, where):
        one = self.asked[pick % len(self.asked)]
        backend = self.engines[one.spec.model].backend
        if where == "open":
            backend.fail_open.add(f"{one.spec.request_id}-0")
        else:
            backend.fail_sample.setdefault(f"{one.spec.request_id}-0", 1)

    @rule(model=st.sampled_from(MODELS), code=st.sampled_from(list(DecodeCode)))
    def the_next_call_fails(self, model, code):
        """Two failed ones in a row kill the engine; that has a rule of its own."""
        backend = self.engines[model].backend
        number = len(backend.plans)
        if DecodeCode.FAILED not in (backend.codes.get(number - 1), backend.codes.get(number + 1)):
            backend.codes[number] = code

    @rule(model=st.sampled_from(MODELS), reload=st.sampled_from([True, True, False]))
    def an_engine_dies(self, model, reload):
        engine = self.engines[model]
        if engine._engine.state is EngineState.READY:
            broken: Any = engine._engine.scheduler
            broken.plan = None  # calling it fails
            engine.step()
        self.settle()
        if reload:
            self.a_model_is_loaded_anew(model)

    @rule(model=st.sampled_from(MODELS))
    def a_model_is_loaded_anew(self, model):
        host = next(host for host in self.hosts.hosts if host.spec.name == model)

        async def reload():
            self.hosts.begin_unload(host)

        self.loop.run_until_complete(reload())
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 60.0]))
    def time_passes(self, seconds):
        self.clock.now += seconds
        self.settle()

    # What must hold after every step

    def generations(self):
        return [one.generation for one in self.asked if one.generation is not None]

    @invariant()
    def places_and_leases_are_conserved(self):
        if not hasattr(self, "line"):
            return
        held = sum(one.spec.n * len(one.spec.prompts) for one in self.asked)
        assert self.line.outstanding == held
        assert self.line.waiting <= QUEUE
        counters = self.line.counters
        assert counters["admitted"] - counters["released"] == len(self.asked)
        for host in self.hosts.hosts:
            mine = [one for one in self.asked if one.spec.model == host.spec.name]
            waiting = sum(waiter.host is host for waiter in self.hosts._line)
            assert host.holders + waiting == len(mine)
        unbegun: Counter[str] = Counter()
        for one in self.asked:
            seats = [] if one.generation is None else one.generation._ticket.seats
            begun = sum(seat.state is not SeatState.WAITING for seat in seats)
            unbegun[one.key] += one.spec.n * len(one.spec.prompts) - begun
        assert self.line._unbegun == +unbegun

    @invariant()
    def lanes_know_what_their_engines_have(self):
        if not hasattr(self, "line"):
            return
        for host in self.hosts.hosts:
            lane, engine = host.lane, self.engines[host.spec.name]
            tickets = [g._ticket for g in self.generations() if g.lease.host is host]
            seats = [seat for ticket in tickets for seat in ticket.seats]
            ahead = {seat for seat in seats if seat.state is SeatState.BEGUN}
            inside = ahead | {seat for seat in seats if seat.state is SeatState.STARTED}
            assert (set(lane._inside), set(lane._ahead)) == (inside, ahead)
            assert set(engine._streams) == {
                f"{generation.choices[seat.index].request.request_id}"
                for generation in self.generations()
                for seat in generation._ticket.seats
                if seat in inside
            } | self.aborted(engine)
            assert lane.ended_places == sum(seat.state is SeatState.ENDED for seat in seats)
            assert len(lane._order) == sum(seat.state is SeatState.WAITING for seat in seats)
            assert sum(lane._by_class.values()) == len(inside)
            assert len(lane._ahead) <= 2 * SLOTS + QUEUE
            for one in lane._order._classes.values():
                assert one.live == sum(flow.live for flow in one.flows.values())
                assert one.waiting == sorted(one.waiting)
                assert set(one.by_age) == {number for _, number, _ in one.waiting}
                for flow in one.flows.values():
                    tags = [flow.start, *(turn.start for turn in flow.waiting)]
                    assert tags == sorted(tags), "a key's later request before its earlier one"
                    places = [turn.place for turn in flow.waiting]
                    assert places == sorted(places)
                    floors = [turn.floor for turn in flow.waiting]
                    assert floors == sorted(floors)

    def aborted(self, engine: Stepped) -> set[str]:
        """Ids that were given up and that the engine has not taken out yet."""
        return {item for item in engine._engine._inbox if isinstance(item, str)} & set(
            engine._streams
        )

    @invariant()
    def no_slot_waits_for_the_line(self):
        """Who is priced and may begin is in the engine as long as it can take more, or may look ahead to."""
        if not hasattr(self, "line"):
            return
        for host in self.hosts.hosts:
            lane = host.lane
            inside = len(lane._inside)
            if inside >= SLOTS and (found := lane._order.head(self.clock.now, tuple(Priority))):
                seat = found[0]
                batch = lane._by_class[Priority.BATCH]
                if seat.yields and (seat.priority is Priority.BATCH or inside - batch >= SLOTS):
                    continue
            if len(lane._order) and inside < 2 * SLOTS:
                others = len(lane._inside) - lane._by_class[Priority.INTERACTIVE]
                assert self.reserved
                assert others >= SLOTS - self.reserved
                assert not lane._order._classes[Priority.INTERACTIVE].waiting

    @invariant()
    def cells_are_conserved(self):
        if not hasattr(self, "line"):
            return
        for engine in self.engines.values():
            engine.check()

    @invariant()
    def tokens_are_conserved(self):
        if not hasattr(self, "line"):
            return
        minutes = (self.clock.now - self.began) / 60
        for key, account in self.service._rate._accounts.items():
            mine = [one for one in self.asked if one.key == key]
            assert account.running == len(mine)
            if account.requests is not None:
                level, most = account.requests.level, account.requests.capacity
                counted = self.counted[key] + len(mine)
                assert most - counted - 1e-6 <= level <= most
                assert counted + level <= most * (1 + minutes * 20) + 1e-6
            if account.tokens is not None:
                held = [one.generation for one in mine if one.generation is not None]
                reserved = sum(generation._grant.reserved for generation in held)
                level, most = account.tokens.level, account.tokens.capacity
                taken = self.spent[key] + reserved
                assert max(0, most - taken) - 1e-6 <= level <= most, "tokens are lost"
                assert taken + level <= most * (1 + minutes) + 1e-6, "tokens from nowhere"

    def teardown(self):
        if not hasattr(self, "line"):
            return
        try:
            self._finish()
        finally:
            self.loop.run_until_complete(self._end())
            self.service.shutdown()
            self.loop.close()
            self.view.close()
            self.database.close()
            self.directory.cleanup()

    async def _end(self):
        await self.hosts.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _finish(self):
        for one in self.asked:
            one.may_tokenize.set()
        for engine in self.engines.values():
            engine.backend.codes.clear()
        for _ in range(3000):
            self.settle()
            if not self.asked:
                break
            self.clock.now += 0.01
            for engine in self.engines.values():
                engine.step()
        assert not self.asked, "somebody waits for ever"
        for engine in self.engines.values():
            engine.step()  # takes the last ones that were given up
        self.settle()
        for engine in self.engines.values():
            scheduler = engine._engine.scheduler
            if engine._engine.state is EngineState.READY:
                assert not engine._streams
                assert scheduler.pool.reserved_cells == 0
        assert (self.line.outstanding, self.line.waiting) == (0, 0)
        assert not self.line._unbegun
        assert not any(host.holders for host in self.hosts.hosts)
        for host in self.hosts.hosts:
            assert not any(one.flows for one in host.lane._order._classes.values())


TestAdmitting = Admitting.TestCase
TestAdmitting.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
