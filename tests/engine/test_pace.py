"""Learned step times, on machines of which the truth is known."""

from __future__ import annotations

import random

import pytest

from server.engine.loop import EngineLoop
from server.engine.pace import Pace, Work, attended_cells
from server.engine.plan import DecodeCode, Rows
from tests.engine.machines import CPU, GPU, TILED, Machine, machine
from tests.factories import FakeClock, ScriptedBackend, make_limits, make_request


def serve(pace: Pace, truth: Machine, *, seed: int, rounds: int = 20, slow: float = 0.0) -> None:
    """Decode and prefill in turn, as a server does; of all calls `slow` take eight times as long."""
    dice = random.Random(seed)

    def call(work: Work) -> None:
        noise = dice.gauss(1, 0.04) * (8 if dice.random() < slow else 1)
        pace.observe(work, truth(work) * noise)

    for _ in range(rounds):
        depth = dice.randrange(50, 1500)
        for step in range(40):
            rows = dice.choice([1, 4, 4, 4])
            call(Work(rows, rows, rows * (depth + step), rows * (depth + step)))
        start = 0
        while start < 1500:
            chunk = dice.choice([16, 32, 64, 128])
            attended = attended_cells(start, chunk) + 3 * depth
            call(Work(chunk + 3, 3, start + chunk + 3 * depth, attended))
            start += chunk
        call(Work(500, 1, 500, attended_cells(0, 500)))


SHAPES = [
    Work(1, 1, 100, 100),
    Work(4, 4, 400, 400),
    Work(4, 4, 5600, 5600),
    Work(35, 3, 332, attended_cells(0, 32) + 300),
    Work(131, 3, 3128, attended_cells(1000, 128) + 3000),
    Work(500, 1, 500, attended_cells(0, 500)),
]


def errors(pace: Pace, truth: Machine) -> list[float]:
    """Relative ones."""
    found = []
    for work in SHAPES:
        told = pace.step_seconds(0, work.rows, outputs=work[1], span=work[2], attended=work[3])
        assert told is not None
        found.append(abs(told / truth(work) - 1))
    return found


def test_nothing_is_said_before_anything_was_measured():
    pace = Pace()
    assert pace.step_seconds(4, 128) is None
    assert pace.prefill_seconds(1000) is None
    assert pace.prefill_row_seconds is None


@pytest.mark.parametrize("points", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("slow", [0.0, 0.02], ids=["quiet", "disturbed"])
def test_a_machine_is_learned_to_within_a_fifth(points, slow):
    pace, truth = Pace(), machine(points)
    serve(pace, truth, seed=1, slow=slow)
    assert max(errors(pace, truth)) < 0.2


def test_attention_in_tiles_and_row_by_row_have_prices_of_their_own():
    pace, truth = Pace(TILED.tile), machine(TILED)
    serve(pace, truth, seed=8)
    less, more = (
        pace.step_seconds(0, rows, outputs=1, span=1500, attended=attended_cells(1400, rows))
        for rows in (48, 64)
    )
    assert less is not None
    assert more is not None
    assert less > 1.2 * more
    assert max(errors(pace, truth)) < 0.2


def test_deep_contexts_are_told_apart_from_many_rows():
    pace, truth = Pace(), machine(CPU)
    serve(pace, truth, seed=2)
    near, deep = (pace.step_seconds(4, 0, span=4 * n, attended=4 * n) for n in (100, 3000))
    assert near is not None
    assert deep is not None
    assert deep - near == pytest.approx(4 * 2900 * 1.05e-5, rel=0.2)


def test_more_rows_never_take_less():
    dice, pace = random.Random(3), Pace()
    for _ in range(200):
        rows = dice.choice([1, 2, 5, 9, 30, 64, 100, 300])
        pace.observe(Work(rows, 1), dice.uniform(0.01, 0.5))
        told = [pace.step_seconds(0, count) or 0.0 for count in range(1, 600, 3)]
        assert told == sorted(told)


def test_a_machine_that_becomes_slower_is_followed():
    pace, fast, slow = Pace(), machine(CPU), machine(CPU, 3.0)
    serve(pace, fast, seed=4)
    serve(pace, slow, seed=5, rounds=8)
    assert max(errors(pace, slow)) < 0.35
    serve(pace, fast, seed=6, rounds=8)
    assert max(errors(pace, fast)) < 0.35


def test_one_long_pause_moves_little():
    pace = Pace()
    for _ in range(50):
        pace.observe(Work(4, 4), 0.05)
    pace.observe(Work(4, 4), 5.0)
    assert pace.step_seconds(4, 0) == pytest.approx(0.05, rel=0.1)


def test_a_size_that_was_slow_once_is_not_shunned():
    """No larger call is made any more that could correct it."""
    pace = Pace()
    pace.observe(Work(132, 4), 30.0)
    for _ in range(20):
        pace.observe(Work(64, 4), 0.15)
    told = pace.step_seconds(0, 132)
    assert told is not None
    assert told < 0.4


def test_unknown_sizes_are_taken_to_cost_in_proportion():
    pace = Pace()
    pace.observe(Work(100, 1), 0.2)
    assert pace.step_seconds(0, 300) == pytest.approx(0.6)
    assert pace.step_seconds(1, 0) == pytest.approx(0.2)
    assert pace.prefill_row_seconds == pytest.approx(0.002)


def test_a_prompt_takes_what_its_chunks_take():
    pace, truth = Pace(), machine(CPU)
    serve(pace, truth, seed=7)
    whole = sum(
        truth(Work(rows, 0, start + rows, attended_cells(start, rows)))
        for start, rows in ((200, 500), (700, 500), (1200, 300))
    )
    assert pace.prefill_seconds(1300, 200, chunk=500) == pytest.approx(whole, rel=0.1)


def test_work_is_counted_from_a_plan():
    rows = [Rows(0, 99, [1], outputs=1), Rows(2, 10, [1, 2, 3], outputs=0)]
    assert Work.of(rows) == Work(4, 1, 100 + 13, 100 + 11 + 12 + 13)


class Timed(ScriptedBackend):
    """Calls take time."""

    def __init__(self, clock: FakeClock, codes: dict[int, DecodeCode]) -> None:
        super().__init__(make_limits(), codes=codes)
        self.clock = clock

    def decode(self, plan):
        self.clock.now += 0.5
        return super().decode(plan)


@pytest.mark.parametrize(("code", "learned"), [(DecodeCode.OK, 0.5), (DecodeCode.NO_CELLS, None)])
def test_the_loop_tells_of_calls_that_succeeded(code, learned):
    clock = FakeClock()
    backend = Timed(clock, {0: code})
    loop = EngineLoop(lambda _: backend, make_limits(), clock, lambda _: None, lambda _: None)
    loop.load()
    loop.submit(make_request([1, 2, 3]))
    loop.step()
    assert loop.scheduler is not None
    assert loop.scheduler.pace.step_seconds(1, 0) == learned


def test_what_moves_little_is_fitted_once_in_four_calls(monkeypatch) -> None:
    fits: list[Pace] = []
    fit = Pace._fit

    def counted(pace: Pace) -> list[tuple[float, float]]:
        fits.append(pace)
        return fit(pace)

    monkeypatch.setattr(Pace, "_fit", counted)
    pace = Pace()
    for _ in range(16):
        pace.observe(Work(4, 4, 100, 100), 0.05)
    assert len(fits) >= 15, "what is new is fitted at once"
    for _ in range(40):
        pace.observe(Work(4, 4, 100, 100), 0.05)
    assert len(fits) <= 16 + 40 / 4
    # Conditions change: what is three times off begins anew.
    for _ in range(20):
        pace.observe(Work(4, 4, 100, 100), 0.02)
    assert pace.seconds(Work(4, 4, 100, 100)) == pytest.approx(0.02, rel=0.1)
