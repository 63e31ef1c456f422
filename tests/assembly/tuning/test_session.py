"""What is tried beside what, what is taken, and what becomes of time and failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from server.assembly.grouping import grouped
from server.assembly.sizing import Sized, sized
from server.assembly.tuning.session import Outcome, Session, Trial
from server.assembly.wanted import wanted
from server.catalog.plan import Memory
from server.engine.limits import SchedulerLimits
from server.engine.trial import Rates, TrialFailed, Workload
from server.llama.params import LlamaParams
from server.settings import Settings
from tests.factories import FakeClock
from tests.models import ModelSpec, write_model

MEMORY = Memory(cpu_available=2**40)
CARD = Memory(gpu_total=2**36, cpu_available=2**40)
Model = Callable[[LlamaParams], float]


class Bench:
    """Answers with `model`'s figure for everything; a run takes `seconds`."""

    def __init__(self, clock: FakeClock, model: Model, seconds: float = 2.0) -> None:
        self.clock, self.model, self.seconds = clock, model, seconds
        self.asked: list[LlamaParams] = []
        self.works: list[Workload] = []

    def run(self, params: LlamaParams, work: Workload, limit: float) -> Rates:
        self.asked.append(params)
        self.works.append(work)
        self.clock.now += self.seconds
        rate = self.model(params)
        if work.document:
            return self.prompts(work)
        return Rates(10 * rate, 10 * rate, rate, rate)

    def prompts(self, work: Workload) -> Rates:
        return Rates(100.0, 100.0, slowest=1.0)


class Watcher:
    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.left: list[float] = []

    def doing(self, what: str, left: float) -> None:
        self.left.append(left)

    def tried(self, trial: Trial) -> None:
        self.trials.append(trial)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("m") / "m.gguf", ModelSpec())


def context(path: Path, memory: Memory = MEMORY, **engine: object) -> Sized:
    document = {"model": {"path": path}, "engine": {"n_ctx": 512, **engine}}
    names = wanted(Settings.model_validate(document), Path)
    (one,) = sized(grouped(names, memory), memory)
    return one


def tune(base: Sized, bench: Bench, seconds: float = 280, memory: Memory = MEMORY) -> Outcome:
    return Session(base, memory, bench, Watcher(), bench.clock).run(seconds)


def verdicts(outcome: Outcome) -> dict[tuple[str, object], str]:
    return {(t.candidate.setting, t.candidate.value): t.verdict for t in outcome.trials}


def test_what_is_better_is_taken_beside_the_best_so_far_and_confirmed_beside_the_defaults(path):
    base = context(path)
    bench = Bench(
        FakeClock(), lambda p: 100 + 10 * (p.n_ubatch == 256) + 10 * (not p.extra_buffers)
    )
    outcome = tune(base, bench)
    assert outcome.settings == {"engine.n_ubatch": 256, "model.extra_buffers": False}
    assert outcome.context.verdict == "confirmed"
    assert outcome.context.confirmed is not None
    assert outcome.context.confirmed.gain == pytest.approx(0.2)
    # Calibration, then A B A B each time; what has been taken is what the next one is held against.
    first = [params.n_ubatch for params in bench.asked[2:6]]
    second = [params.n_ubatch for params in bench.asked[6:10]]
    of_contexts = [p for p, work in zip(bench.asked, bench.works, strict=True) if not work.document]
    last = [(params.n_ubatch, params.extra_buffers) for params in of_contexts[-4:]]
    assert first == [512, 256, 512, 256]
    assert second == [256, 1024, 256, 1024]
    assert last == [(512, True), (256, False), (512, True), (256, False)]


def test_a_difference_within_the_noise_keeps_the_defaults(path):
    rates = iter([100, 100, *([100, 104, 103, 104] * 20)])
    outcome = tune(context(path), Bench(FakeClock(), lambda _params: next(rates)))
    assert outcome.settings == {}
    assert {trial.verdict for trial in outcome.context.trials} == {"not better beyond the noise"}
    assert outcome.context.verdict == "nothing was better than the defaults"


def test_a_profile_that_is_not_better_again_is_dropped(path):
    bench = Bench(FakeClock(), lambda p: 100 + 10 * (p.n_ubatch == 256) * (len(bench.asked) < 20))
    outcome = tune(context(path), bench)
    assert verdicts(outcome)["engine.n_ubatch", 256] == "taken"
    assert outcome.settings == {}
    assert (
        outcome.context.verdict
        == "the profile was not better than the defaults when it was confirmed"
    )


def test_a_candidate_that_does_not_run_has_lost_and_the_others_are_tried(path):
    def model(params: LlamaParams) -> float:
        if params.n_ubatch == 256:
            raise TrialFailed("out of memory")
        return 100 + 10 * (params.n_ubatch == 1024)

    outcome = tune(context(path), Bench(FakeClock(), model))
    assert verdicts(outcome)["engine.n_ubatch", 256] == "does not run: out of memory"
    assert outcome.settings == {"engine.n_ubatch": 1024}


def test_without_the_defaults_there_is_nothing_to_compare_with(path):
    def model(_params: LlamaParams) -> float:
        raise TrialFailed("out of memory")

    with pytest.raises(TrialFailed, match="out of memory"):
        tune(context(path), Bench(FakeClock(), model))


def test_what_is_set_is_left_alone(path):
    bench = Bench(FakeClock(), lambda _params: 100.0)
    outcome = tune(context(path, n_ubatch=64, kv_layout="unified"), bench)
    settings = {trial.candidate.setting for trial in outcome.context.trials}
    assert settings == {"model.extra_buffers", "engine.flash_attention"} | (
        settings & {"engine.threads", "engine.threads_batch"}
    )
    assert {params.n_ubatch for params in bench.asked} == {64}


def test_the_split_layout_has_to_bring_more_because_it_copies_prefixes(path):
    base = context(path, CARD)

    def told(rate: float) -> str:
        bench = Bench(FakeClock(), lambda p: 100.0 if p.unified else rate)
        return verdicts(tune(base, bench, memory=CARD))["engine.kv_layout", "split"]

    assert (
        told(108) == "better by less than 10%, and its slots copy prefixes instead of sharing them"
    )
    assert told(112) == "taken"


def test_where_split_and_no_flash_attention_are_the_default_the_others_are_tried(path):
    bench = Bench(FakeClock(), lambda p: 100 + 4 * p.unified + 4 * (p.flash and not p.unified))
    outcome = tune(context(path), bench)
    assert verdicts(outcome)["engine.kv_layout", "unified"] == "taken"
    assert ("engine.kv_layout", "split") not in verdicts(outcome)
    assert ("engine.flash_attention", "off") not in verdicts(outcome)
    quicker = Bench(FakeClock(), lambda p: 100 + 4 * (p.flash and not p.unified))
    assert tune(context(path), quicker).settings == {"engine.flash_attention": "on"}
    assert (bench.asked[0].layout, bench.asked[0].flash_attention) == ("split", "off")


def test_a_gain_that_one_figure_pays_for_is_not_taken(path):
    class Uneven(Bench):
        def run(self, params: LlamaParams, work: Workload, limit: float) -> Rates:
            super().run(params, work, limit)
            plain = not params.extra_buffers
            return Rates(300.0 if plain else 100.0, 100, 90 if plain else 100, 100)

    outcome = tune(context(path), Uneven(FakeClock(), lambda _params: 1.0))
    assert verdicts(outcome)["model.extra_buffers", False] == "costs single"


def test_time_is_kept_for_the_confirmation_and_never_exceeded_by_much(path):
    clock = FakeClock()
    bench = Bench(clock, lambda p: 100 + 10 * (p.n_ubatch == 256), seconds=10.0)
    begin = clock.now
    outcome = tune(context(path), bench, seconds=200)
    assert clock.now - begin <= 200
    assert outcome.settings == {"engine.n_ubatch": 256}
    assert "no time was left" in verdicts(outcome).values()


def test_a_machine_that_becomes_slow_does_not_make_it_longer(path):
    clock = FakeClock()

    def model(params: LlamaParams) -> float:
        clock.now += 40 if len(bench.asked) > 4 else 0
        return 100 + 10 * (params.n_ubatch == 256)

    bench = Bench(clock, model, seconds=1.0)
    begin = clock.now
    outcome = tune(context(path), bench, seconds=100)
    assert clock.now - begin < 100 + 41
    assert outcome.settings == {}


class Prompts(Bench):
    """Nothing is better for a context; prompts take what `figures` says for alone and beside streams."""

    def __init__(self, figures: Callable[[SchedulerLimits], Rates], seconds: float = 1.0) -> None:
        super().__init__(FakeClock(), lambda _params: 100.0, seconds)
        self.figures = figures

    def prompts(self, work: Workload) -> Rates:
        return self.figures(work.limits)


def test_rows_of_prompts_are_taken_where_they_are_quicker(path):
    bench = Prompts(
        lambda limits: Rates(
            110 if limits.prefill_rows == 128 else 100,
            110 if (limits.prefill_rows, limits.prefill_rows_decoding) == (128, 64) else 100,
            slowest=1.0,
        )
    )
    outcome = tune(context(path), bench)
    assert outcome.settings == {
        "engine.max_prefill_rows": 128,
        "engine.max_prefill_rows_decoding": 64,
    }
    assert outcome.prompts.verdict == "confirmed"
    assert outcome.context.settings == {}
    told = [
        (t.candidate.setting.removeprefix("engine."), t.candidate.value) for t in outcome.trials
    ]
    assert told[-5:] == [
        ("max_prefill_rows", 64),
        ("max_prefill_rows", 128),
        ("max_prefill_rows", 256),
        ("max_prefill_rows_decoding", 64),
        ("max_prefill_rows_decoding", 128),
    ]
    # All with one document, longer than what is tried, and streams beside it.
    document = {work.document for work in bench.works if work.document}
    assert document == {256}
    assert verdicts(outcome)["engine.max_prefill_rows", 256] == (
        "time is too short for prompts of more than 256 tokens"
    )


def test_rows_that_make_streams_wait_longer_are_not_taken_however_quick(path):
    bench = Prompts(
        lambda limits: Rates(
            150 if limits.prefill_rows == 64 else 100,
            150 if limits.prefill_rows == 64 else 100,
            slowest=0.94 if limits.prefill_rows == 64 else 1.0,
        )
    )
    outcome = tune(context(path), bench)
    assert verdicts(outcome)["engine.max_prefill_rows", 64] == "costs slowest"
    assert outcome.settings == {}


def test_shorter_gaps_alone_are_no_reason(path):
    def figures(limits: SchedulerLimits) -> Rates:
        less = limits.prefill_rows_decoding == 64
        return Rates(100, 101 if less else 100, slowest=4.0 if less else 1.0)

    outcome = tune(context(path), Prompts(figures))
    assert (
        verdicts(outcome)["engine.max_prefill_rows_decoding", 64] == "not better beyond the noise"
    )
    assert outcome.settings == {}


def test_rows_of_prompts_are_measured_and_confirmed_on_top_of_what_was(path):
    class Both(Prompts):
        def run(self, params: LlamaParams, work: Workload, limit: float) -> Rates:
            self.model = lambda p: 100 + 10 * (p.n_ubatch == 256)
            return super().run(params, work, limit)

    bench = Both(lambda limits: Rates(100 + limits.prefill_rows, 100, slowest=1.0))
    outcome = tune(context(path), bench)
    assert outcome.settings == {"engine.n_ubatch": 256}
    beside = [p for p, work in zip(bench.asked, bench.works, strict=True) if work.document]
    assert {params.n_ubatch for params in beside} == {256}
    assert {work.limits.prefill_rows for work in bench.works if work.document} == {32, 64, 128, 256}


def test_rows_that_are_not_better_again_are_dropped_alone(path):
    class Once(Prompts):
        def run(self, params: LlamaParams, work: Workload, limit: float) -> Rates:
            self.model = lambda p: 100 + 10 * (p.n_ubatch == 256)
            return super().run(params, work, limit)

    taken: list[int] = []

    def figures(limits: SchedulerLimits) -> Rates:
        taken.append(limits.prefill_rows)
        return Rates(110 if limits.prefill_rows == 64 and len(taken) < 10 else 100, 100, slowest=1)

    outcome = tune(context(path), Once(figures))
    assert outcome.settings == {"engine.n_ubatch": 256}
    assert outcome.prompts.verdict == (
        "the profile was not better than the defaults when it was confirmed"
    )


def test_rows_that_somebody_has_set_are_left_alone(path):
    bench = Prompts(lambda _limits: Rates(100, 100, slowest=1.0))
    outcome = tune(context(path, max_prefill_rows=128, max_prefill_rows_decoding=64), bench)
    assert outcome.prompts.trials == []
    assert not any(work.document for work in bench.works)
