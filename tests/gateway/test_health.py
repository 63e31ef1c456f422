"""Health follows the engine's progress."""

from __future__ import annotations

import pytest

from server.engine.interface import EngineState
from server.gateway.gpu_shedding import GpuGuard
from server.gateway.health import Health, HealthLimits
from server.gateway.host import HostState
from server.gateway.hosts import HostManager
from server.gateway.line import Line, LineLimits
from server.gateway.memory import Budget
from tests.fakes import FakeClock, FakeEngine
from tests.serving import adopted


@pytest.fixture
def parts():
    clock, engine = FakeClock(), FakeEngine()
    line = Line(LineLimits(1), clock)
    engine.last_step = clock.now
    host = adopted(engine, line)
    hosts = HostManager([host], Budget(), clock)
    limits = HealthLimits(stall_after=30.0)
    guard = GpuGuard((), clock, hosts.expire, "there is no GPU")
    return Health(hosts, host, line, guard, limits, clock), engine, line, clock


def test_standing_still_is_fine_without_work(parts):
    health, engine, _, clock = parts
    clock.advance(3600)
    assert health.live().ok
    engine.has_work = True
    assert health.live().status == "stalled"
    engine.last_step = clock.now
    assert health.live().ok
    clock.advance(30.5)
    assert not health.live().ok
    assert not health.ready().ok


def test_loading_is_alive_but_not_ready(parts):
    health, engine, _, clock = parts
    engine.state, engine.progress, engine.has_work = EngineState.LOADING, 0.4, True
    host = health._default
    host.state, host.loads = HostState.LOADING, 0
    clock.advance(3600)
    assert health.live().ok
    assert health.ready().status == "loading"
    assert "40%" in health.ready().message


def test_loading_again_keeps_requests_in_line_so_it_is_ready(parts):
    health, engine, _, _ = parts
    engine.state, health._default.state = EngineState.LOADING, HostState.LOADING
    assert health.ready().ok


def test_one_dead_model_of_several_does_not_condemn_the_others(parts):
    health, engine, line, clock = parts
    other = FakeEngine(last_step=clock.now)
    second = adopted(other, line, "second")
    health._hosts = HostManager([health._default, second], Budget(), clock)
    other.state, other.dead_reason = EngineState.DEAD, "The loop raised."
    assert health.live().ok
    assert "'second': The loop raised." in health.live().message
    assert health.ready().ok
    # Without it nobody answers: the first model is not loaded.
    host = health._default
    host.engine, host.state = None, HostState.UNLOADED
    assert health.live().status == "dead"
    # The first model's death always counts.
    host.engine, host.state, engine.state = engine, HostState.READY, EngineState.DEAD
    other.state = EngineState.READY
    assert health.live().status == "dead"


def test_dead_says_why(parts):
    health, engine, _, _ = parts
    engine.state, engine.dead_reason = EngineState.DEAD, "the loop raised"
    assert health.live().message == "the loop raised"
    assert health.ready().status == "dead"


def test_draining_is_alive_but_not_ready(parts):
    health, _, line, _ = parts
    assert health.ready().ok
    line.drain()
    assert health.live().ok
    assert health.ready().status == "draining"


def test_a_model_that_went_idle_is_no_reason_not_to_be_ready(parts):
    health, engine, _, _ = parts
    host = health._default
    host.engine, host.state = None, HostState.UNLOADED
    assert health.ready().ok
    host.state = HostState.FAILED
    assert health.ready().ok
    host.loads = 0
    assert health.ready().status == "loading"
    engine.state, host.engine, host.state = EngineState.DEAD, engine, HostState.READY
    assert not health.live().ok
