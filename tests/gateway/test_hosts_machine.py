"""Any order of requests, loads, failures, ends and idle times: the rules of hosting hold."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.core.errors import ModelFileError, OnegpuError
from server.gateway.host import HostState, Lease
from tests.gateway.hosting import House, settle

SIZES = {"a": 3, "b": 4, "c": 5}
BUDGET = 8
names = st.sampled_from(sorted(SIZES))
picks = st.integers(0, 100)


class Hosting(RuleBasedStateMachine):
    """Requests come and go, engines load, fail and end when the machine says so."""

    @initialize(keep_alive=st.sampled_from([None, 0.0, 10.0]))
    def begin(self, keep_alive):
        self.loop = asyncio.new_event_loop()
        self.house = self._in_loop(lambda: House(SIZES, BUDGET, keep_alive=keep_alive))
        self.waiting: list[asyncio.Task[Lease]] = []
        self.held: list[Lease] = []
        self.answers = 0
        self.asked = 0

    def _in_loop(self, work):
        async def main():
            result = work()
            await settle()
            return result

        return self.loop.run_until_complete(main())

    def _collect(self) -> None:
        """Take the answers that are there: a lease, or an error."""
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            self.answers += 1
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                self.held.append(task.result())
            else:
                assert isinstance(error, OnegpuError), error

    def _do(self, work) -> None:
        self._in_loop(work)
        self._collect()

    @rule(name=names)
    def request(self, name):
        self.asked += 1
        acquire = self.house.manager.acquire
        host = self.house.hosts[name]
        self._do(lambda: self.waiting.append(asyncio.ensure_future(acquire(host, 1e9))))

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def give_up(self, pick):
        self._do(self.waiting[pick % len(self.waiting)].cancel)

    @precondition(lambda self: self.held)
    @rule(pick=picks, seconds=st.sampled_from([0.0, 1.0, 20.0]))
    def finish(self, pick, seconds):
        lease = self.held.pop(pick % len(self.held))
        assert not getattr(lease.engine, "stopping", True), (
            "an answer was cut by unloading its model"
        )
        self.house.clock.advance(seconds)
        self._do(lease.release)

    @precondition(lambda self: self.house.loading())
    @rule(fails=st.booleans())
    def load_ends(self, fails):
        (name,) = self.house.loading()
        if fails:
            self.house.let_end(name)
            self._do(lambda: self.house.fail(name, ModelFileError("broken")))
        else:
            self._do(self.house.engine(name).come_up)

    @precondition(lambda self: self.house.ending())
    @rule(pick=picks)
    def memory_is_free(self, pick):
        ending = self.house.ending()
        self._do(lambda: self.house.let_end(ending[pick % len(ending)]))

    @rule(name=names)
    def unload(self, name):
        self._do(lambda: self.house.manager.begin_unload(self.house.hosts[name]))

    @rule(name=names)
    def load(self, name):
        self._do(lambda: self.house.manager.begin_load(self.house.hosts[name]))

    @rule(seconds=st.sampled_from([0.5, 10.0, 100.0]))
    def time_passes(self, seconds):
        self.house.clock.advance(seconds)
        self._do(self.house.manager.expire)

    @invariant()
    def the_budget_holds(self):
        if hasattr(self, "house"):
            assert self.house.memory() <= BUDGET

    @invariant()
    def one_loads_at_a_time(self):
        if hasattr(self, "house"):
            assert len(self.house.loading()) <= 1

    @invariant()
    def holders_are_counted_and_never_cut(self):
        if hasattr(self, "house"):
            for host in self.house.hosts.values():
                mine = [lease for lease in self.held if lease.host is host]
                assert host.holders == len(mine)
                assert all(lease.engine is host.engine for lease in mine)
                assert not (mine and host.state is not HostState.READY)

    @invariant()
    def nobody_waits_for_what_is_open(self):
        if hasattr(self, "house"):
            open_hosts = [host for host in self.house.hosts.values() if host.open]
            assert not any(waiter.host in open_hosts for waiter in self.house.manager._line)

    def teardown(self):
        if not hasattr(self, "house"):
            return
        for _ in range(200):
            self._step_to_the_end()
            if not self.waiting:
                break
        assert not self.waiting, "somebody waits for ever"
        assert self.answers == self.asked
        for lease in self.held:
            self._do(lease.release)
        end = self.loop.create_task(self.house.manager.stop())
        for _ in range(100):
            self._in_loop(self._let_all_end)
        assert end.done()
        assert self.house.memory() == 0
        self.loop.close()

    def _let_all_end(self) -> None:
        for engines in self.house.engines.values():
            for engine in engines:
                engine.held.set()

    def _step_to_the_end(self) -> None:
        """Everybody finishes, everything comes up: then all who wait must be answered."""
        while self.held:
            self._do(self.held.pop().release)
        for name in self.house.ending():
            self._do(lambda name=name: self.house.let_end(name))
        for name in self.house.loading():
            self._do(self.house.engine(name).come_up)


TestHosting = Hosting.TestCase
TestHosting.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
