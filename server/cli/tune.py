"""`onegpu tune`: measure what suits a model on this machine, and keep it for `serve`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.core.errors import OnegpuError

if TYPE_CHECKING:
    from server.assembly.tuning.judging import Comparison
    from server.assembly.tuning.session import Outcome, Part, Trial
    from server.assembly.tuning.tune import Subject
    from server.cli.chat.terminal import Terminal
    from server.cli.parsing import Commands
    from server.settings import Settings

_DESCRIPTION = """\
Measure on this machine which settings suit MODEL, and keep them as a profile that `onegpu serve`
takes: threads, n_ubatch, kv_layout, flash_attention, extra_buffers, layers on the GPU where not
all are, and then how many rows of prompts a step has, alone and beside streams.

Each candidate runs in a child process, in turns with the best so far (A B A B). It is
taken where its worst run scores 2 % more than the other's best, and no figure loses 5 %. The score
is a weighted geometric mean of tokens/s: prompts 0.30, a prompt beside other streams 0.10, one
stream 0.25, all slots 0.35. Rows of prompts are judged by one prompt, alone and beside streams,
half each; no stream's longest gap may grow. At last the profile runs in turns with the defaults:
unless it is better again, the defaults are kept.

What the configuration sets itself is neither tuned nor changed. Load nothing else meanwhile."""
_EPILOG = """\
examples:
  onegpu tune models/demo.gguf                 for 4 slots of 4096 tokens, the default
  onegpu tune qwen3:8b --slots 8 --n-ctx 8192  profiles hold for one size of context
  onegpu tune m.gguf --config onegpu.yaml      as `serve --config onegpu.yaml` would serve it

The profile is a file in DATA_DIR/tuned; deleting it forgets it.

Exit status: 0 done, 1 the model does not run, 2 wrong usage, 130 interrupted (nothing is kept)."""
_FLAGS = (
    ("--slots", "N", "engine.slots", "requests that run at once"),
    ("--n-ctx", "TOKENS", "engine.n_ctx", "most tokens of one request"),
    ("--kv-cells", "TOKENS", "engine.kv_cells", "size of the whole KV cache"),
    ("--kv-type", "TYPE", "engine.kv_type", "f16, q8_0, q4_0 and others"),
    ("--n-gpu-layers", "N", "model.n_gpu_layers", "layers on the GPU, then not tuned"),
    ("--adapter", "FILE", "model.adapter", "a LoRA adapter's GGUF"),
    ("--data-dir", "DIR", "data_dir", "where the profile goes, below tuned/"),
)
_INTERRUPTED = 130
_FIGURES = {
    "prefill": "prompt",
    "beside": "prompt beside",
    "single": "one stream",
    "all": "all streams",
}
_PROMPT_FIGURES = {
    "prefill": "prompt",
    "beside": "prompt beside",
    "slowest": "slowest stream",
}


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "tune",
        prog="onegpu tune",
        help="measure what suits a model on this machine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("model", metavar="MODEL", help="as for `onegpu serve`")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file [none]")
    for flag, metavar, setting, text in _FLAGS:
        parser.add_argument(flag, dest=setting, metavar=metavar, help=text)
    parser.add_argument(
        "--limit", type=_seconds, default=280, metavar="SECONDS", help="time for all of it [280]"
    )
    parser.add_argument("--json", action="store_true", help="print everything for programs")


def run(options: argparse.Namespace) -> int:
    """Tune, print and keep. Raises `ConfigError` and `OnegpuError`."""
    from server.assembly.tuning.tune import keep, subject_of, tune
    from server.cli.chat.terminal import Terminal
    from server.cli.serve import fetch
    from server.core.clock import SystemClock
    from server.engine.trial import TrialFailed
    from server.settings.environment import read_environment

    settings = _settings(options)
    subject = subject_of(settings, lambda text: fetch(text, settings))
    terminal = Terminal(sys.stderr, sys.stderr, read_environment())
    _say_what(subject, terminal)
    try:
        outcome = tune(subject, float(options.limit), _Watcher(terminal), SystemClock())
    except TrialFailed as error:
        terminal.clear_status()
        raise OnegpuError(f"The model does not run with the defaults: {error}.") from error
    except KeyboardInterrupt:
        terminal.clear_status()
        before = "the profile of before stays" if subject.path.exists() else "there is no profile"
        terminal.note(f"interrupted: nothing was confirmed yet, so nothing is kept; {before}")
        return _INTERRUPTED
    terminal.clear_status()
    there = keep(subject, outcome)
    if options.json:
        print(json.dumps(_document(subject, outcome), indent=1))
    else:
        print(_report(subject, outcome, there=there))
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    from server.settings import Override, load

    given = [("model.path", "MODEL", options.model)]
    given += [(name, flag, getattr(options, name)) for flag, _, name, _ in _FLAGS]
    flags = [Override(tuple(n.split(".")), flag, text) for n, flag, text in given if text]
    return load(options.config, flags=flags).settings


def _say_what(subject: Subject, terminal: Terminal) -> None:
    import os

    sizes = subject.context.sizes
    terminal.note(
        f"{subject.context.group.name}, {sizes.slots} slots of {sizes.n_ctx} tokens, {sizes.kv_type}; "
        f"{subject.machine}"
    )
    busy = os.getloadavg()[0]
    if busy > 0.5:
        terminal.note(f"the machine is busy (load {busy:.1f}): less will stand out from the noise")


class _Watcher:
    """Shows how far it is."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def doing(self, what: str, left: float) -> None:
        self._terminal.status(f"{what}; at most {_minutes(left)} left")

    def tried(self, trial: Trial) -> None:
        self._terminal.note(_line(trial))


def _line(trial: Trial) -> str:
    from server.settings.report import text_of

    gain = f"{trial.comparison.gain:+.1%}" if trial.comparison else ""
    tried = f"{trial.candidate.setting} {text_of(trial.candidate.value)}"
    return f"  {tried:<30} {gain:>7}  {trial.verdict}"


def _report(subject: Subject, outcome: Outcome, *, there: bool) -> str:
    from server.settings.report import text_of

    lines = []
    context, prompts = outcome.context, outcome.prompts
    if context.work is not None:
        work = context.work
        lines.append(
            f"Tokens/s of {work.streams} streams at a depth of {work.depth} tokens, "
            "each beside the best so far:\n"
        )
        lines.append(_table(context, _FIGURES))
    if prompts.work is not None and prompts.trials:
        work = prompts.work
        lines.append(
            f"\nTokens/s of a prompt of {work.document} tokens, alone and beside "
            f"{work.streams - 1} streams, and of a stream in its longest gap:\n"
        )
        lines.append(_table(prompts, _PROMPT_FIGURES))
    if outcome.settings:
        values = ", ".join(f"{name} {text_of(v)}" for name, v in outcome.settings.items())
        lines.append(f"\nKept: {values}. {' '.join(_gains(outcome))}")
        lines.append(f"`onegpu serve` takes it from {subject.path}")
    else:
        gone = f", and {subject.path} is removed" if there else ""
        lines.append(f"\nThe defaults are kept{gone}: {_why(outcome)}.")
    return "\n".join(lines)


def _gains(outcome: Outcome) -> Iterator[str]:
    if outcome.context.settings and outcome.context.confirmed:
        gain = outcome.context.confirmed.gain
        yield f"Measured again, it scores {gain:.1%} more than the defaults."
    if outcome.prompts.settings and outcome.prompts.confirmed:
        gain = outcome.prompts.confirmed.gain
        yield f"Measured again, the rows of prompts bring {gain:.1%}."


def _why(outcome: Outcome) -> str:
    """Say it of both parts, where they differ."""
    verdicts = [part.verdict for part in (outcome.context, outcome.prompts) if part.verdict]
    return "; ".join(dict.fromkeys(verdicts))


def _table(part: Part, figures: Mapping[str, str]) -> str:
    """Lay out what each candidate changed, figure by figure."""
    from server.settings.report import text_of

    rows = [("tried", *figures.values(), "score", "")]
    for trial in part.trials:
        tried = f"{trial.candidate.setting} {text_of(trial.candidate.value)}"
        rows.append((tried, *_cells(trial.comparison, figures), trial.verdict))
    if part.confirmed is not None:
        rows.append(("the profile again", *_cells(part.confirmed, figures), part.verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:]), row[-1]]
        ).rstrip()
        for row in rows
    )


def _cells(comparison: Comparison | None, figures: Mapping[str, str]) -> list[str]:
    if comparison is None:
        return [""] * (len(figures) + 1)
    gains: dict[str, float] = comparison.gains
    cells = [f"{gains[name]:+.1%}" if name in gains else "–" for name in figures]
    return [*cells, f"{comparison.gain:+.1%}"]


def _document(subject: Subject, outcome: Outcome) -> dict[str, Any]:
    from dataclasses import asdict

    def measured(comparison: Comparison | None) -> dict[str, Any] | None:
        if comparison is None:
            return None
        return {**asdict(comparison), "gain": comparison.gain, "gains": comparison.gains}

    def part_of(part: Part) -> dict[str, Any]:
        return {
            "work": part.work and asdict(part.work),
            "trials": [
                {
                    "setting": trial.candidate.setting,
                    "value": trial.candidate.value,
                    "verdict": trial.verdict,
                    "measured": measured(trial.comparison),
                }
                for trial in part.trials
            ],
            "confirmed": measured(part.confirmed),
            "verdict": part.verdict,
        }

    return {
        "model": str(subject.context.group.model.path),
        "machine": subject.machine,
        "context": asdict(subject.context.sizes),
        **part_of(outcome.context),
        "prompts": part_of(outcome.prompts),
        "settings": outcome.settings,
        "profile": str(subject.path) if outcome.settings else None,
    }


def _minutes(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02}"


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 10 <= int(text) <= 3600:
        raise argparse.ArgumentTypeError(f"must be 10 to 3600 seconds, not {text!r}")
    return int(text)
