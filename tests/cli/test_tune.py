"""`onegpu tune`: what it prints and keeps, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.assembly.tuning import tune as tuning
from server.assembly.tuning.candidates import Candidate
from server.assembly.tuning.judging import Comparison
from server.assembly.tuning.session import Outcome, Part, Trial
from server.cli.main import main
from server.engine.limits import SchedulerLimits
from server.engine.trial import Rates, TrialFailed, Workload
from tests.models import ModelSpec, write_model

SLOW, FAST = Rates(100.0, 50.0, 10.0, 30.0), Rates(150.0, 50.0, 10.0, 33.0)
GAINED = Comparison([SLOW, SLOW], [FAST, FAST])
WORK = Workload(4, 256, 16, SchedulerLimits())
DOCUMENT = Workload(4, 64, 0, SchedulerLimits(), 512)
PROMPTS = Comparison([Rates(100.0, 50.0, slowest=2.0)] * 2, [Rates(110.0, 50.0, slowest=4.0)] * 2)


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONEGPU_DATA_DIR", str(tmp_path / "data"))
    return write_model(tmp_path / "m.gguf", ModelSpec())


def outcome(*, won: bool) -> Outcome:
    trials = [
        Trial(Candidate("engine.n_ubatch", 256), "taken", GAINED),
        Trial(Candidate("model.extra_buffers", value=False), "does not run: no memory"),
    ]
    verdict = "confirmed" if won else "nothing was better than the defaults"
    settings = {"engine.n_ubatch": 256} if won else {}
    return Outcome(Part(WORK, settings, trials, GAINED if won else None, verdict), prompts(won=won))


def prompts(*, won: bool) -> Part:
    verdict = "taken" if won else "not better beyond the noise"
    trial = Trial(Candidate("engine.max_prefill_rows", 64), verdict, PROMPTS)
    settings = {"engine.max_prefill_rows": 64} if won else {}
    told = "confirmed" if won else "nothing was better than the defaults"
    return Part(DOCUMENT, settings, [trial], PROMPTS if won else None, told)


@pytest.fixture
def measured(monkeypatch):
    """Stand in for the measuring; append what it shall come to."""
    found: list[Outcome | BaseException] = []

    def tune(_subject, _seconds, watcher, _clock) -> Outcome:
        result = found.pop(0)
        if isinstance(result, BaseException):
            raise result
        watcher.doing("engine.n_ubatch 256: run 1 of 4", 61.0)
        for trial in result.trials:
            watcher.tried(trial)
        return result

    monkeypatch.setattr(tuning, "tune", tune)
    return found


def profiles(model: Path) -> list[Path]:
    return sorted((model.parent / "data" / "tuned").glob("*"))


def test_what_was_found_is_shown_and_kept_and_in_force(model, measured, capsys) -> None:
    measured.append(outcome(won=True))
    assert main(["tune", str(model)]) == 0
    out, err = capsys.readouterr()
    (profile,) = profiles(model)
    rows = [line.split() for line in out.splitlines()]
    assert [
        "engine.n_ubatch",
        "256",
        "+50.0%",
        "+0.0%",
        "+0.0%",
        "+10.0%",
        "+16.8%",
        "taken",
    ] in rows
    assert "model.extra_buffers false" in out
    assert "does not run: no memory" in out
    cells = ["engine.max_prefill_rows", "64", "+10.0%", "+0.0%", "+100.0%", "+4.9%", "taken"]
    assert cells in rows
    assert "Kept: engine.n_ubatch 256, engine.max_prefill_rows 64." in out
    assert (
        "it scores 16.8% more than the defaults. Measured again, the rows of prompts bring 4.9%."
        in out
    )
    assert str(profile) in out
    assert "engine.n_ubatch 256" in err, "a line for each candidate while it goes on"
    Path("c.yaml").write_text(f"model: {{path: {model}}}\n", encoding="utf-8")
    assert main(["check-config", "c.yaml"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("engine.n_ubatch"))
    assert line.split(None, 2) == ["engine.n_ubatch", "256", f"tuned ({profile})"]


def test_defaults_that_win_remove_the_profile_of_before(model, measured, capsys) -> None:
    measured += [outcome(won=True), outcome(won=False)]
    main(["tune", str(model)])
    (profile,) = profiles(model)
    capsys.readouterr()
    assert main(["tune", str(model)]) == 0
    out = capsys.readouterr().out
    assert profiles(model) == []
    assert f"The defaults are kept, and {profile} is removed: nothing was better" in out


def test_an_interruption_keeps_nothing_and_says_so(model, measured, capsys) -> None:
    measured += [outcome(won=True), KeyboardInterrupt()]
    main(["tune", str(model)])
    (profile,) = profiles(model)
    before = profile.read_text(encoding="utf-8")
    assert main(["tune", str(model)]) == 130
    assert "so nothing is kept; the profile of before stays" in capsys.readouterr().err
    assert profile.read_text(encoding="utf-8") == before


def test_programs_get_every_figure(model, measured, capsys) -> None:
    measured.append(outcome(won=True))
    assert main(["tune", str(model), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"] == {"engine.n_ubatch": 256, "engine.max_prefill_rows": 64}
    (rows,) = document["prompts"]["trials"]
    assert rows["measured"]["after"][0]["slowest"] == 4.0
    assert document["profile"] == str(profiles(model)[0])
    first, second = document["trials"]
    assert first["measured"]["before"][0]["prefill"] == 100.0
    assert second == {
        "setting": "model.extra_buffers",
        "value": False,
        "verdict": "does not run: no memory",
        "measured": None,
    }


def test_a_model_that_does_not_run_is_an_error(model, measured, capsys) -> None:
    measured.append(TrialFailed("out of memory"))
    assert main(["tune", str(model)]) == 1
    assert "The model does not run with the defaults: out of memory." in capsys.readouterr().err


def test_rows_one_by_one_leave_nothing_to_tune(model, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ONEGPU_ENGINE__DETERMINISTIC", "true")
    assert main(["tune", str(model)]) == 2
    assert "nothing to tune" in capsys.readouterr().err


@pytest.mark.native
@pytest.mark.slow
def test_it_measures(model, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ONEGPU_ENGINE__THREADS", "1")
    arguments = ["--n-ctx", "256", "--slots", "2", "--limit", "10", "--json"]
    assert main(["tune", str(model), *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["work"]["streams"] == 2
    assert bool(document["settings"]) == bool(profiles(model))
    assert {one["setting"] for one in document["trials"]} >= {"engine.n_ubatch", "engine.kv_layout"}
    rows = {one["setting"] for one in document["prompts"]["trials"]}
    assert rows == {"engine.max_prefill_rows", "engine.max_prefill_rows_decoding"}
