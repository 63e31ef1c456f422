"""What is handed over: a table for people, a document for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from server.bench.client import Outcome
from server.bench.probe import Probed
from server.bench.scenarios import SCENARIOS
from server.bench.session import Plan, title
from server.bench.statistics import Figures, Measured, figures, over_rounds, ratios

_HEAD = (
    *("scenario", "server", "first p50", "p95", "p99", "gap p50", "p99", "max"),
    *("tok/s", "errors", "resets", "cached/prompt tokens"),
)
_TIMES = ("first_p50", "first_p95", "first_p99", "gap_p50", "gap_p99", "gap_max")


@dataclass(frozen=True)
class Cell:
    """One server in one row, over all rounds."""

    server: str
    rounds: Sequence[Figures]
    figures: Figures
    ratios: Mapping[str, float]
    """The first server to this one; empty for the first itself."""


def cells(measured: Sequence[Measured]) -> dict[str, list[Cell]]:
    """Gather what belongs together: title of the row → its servers in their order."""
    rows: dict[tuple[str, str, int], dict[str, list[Figures]]] = {}
    for one in measured:
        rows.setdefault(one.row, {}).setdefault(one.server, []).append(figures(one))
    found = {}
    for (scenario, phase, users), servers in rows.items():
        base = next(iter(servers.values()))
        found[title(scenario, phase, users)] = [
            Cell(name, rounds, over_rounds(rounds), {} if rounds is base else ratios(base, rounds))
            for name, rounds in servers.items()
        ]
    return found


def table(measured: Sequence[Measured]) -> str:
    """Lay all rows out."""
    lines: list[tuple[str, ...]] = [_HEAD]
    for name, servers in cells(measured).items():
        for place, cell in enumerate(servers):
            lines.append((name if place == 0 else "", cell.server, *_row(cell.figures)))
        lines += [
            ("", f"{servers[0].server} / {cell.server}", *_ratio_row(cell.ratios))
            for cell in servers[1:]
        ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _row(found: Figures) -> tuple[str, ...]:
    tokens = "–"
    if found.prompt_tokens is not None:
        cached = "–" if found.cached_tokens is None else f"{found.cached_tokens:,}"
        tokens = f"{cached} / {found.prompt_tokens:,}"
    return (
        *(seconds(getattr(found, name)) for name in _TIMES),
        "–" if math.isnan(found.rate) else f"{found.rate:.1f}",
        f"{found.errors} of {found.requests}" if found.errors else "0",
        str(found.resets),
        tokens,
    )


def _ratio_row(found: Mapping[str, float]) -> tuple[str, ...]:
    shown = [_ratio(found[name]) for name in (*_TIMES, "rate")]
    computed = found["computed"]
    return (*shown, "", "", "" if math.isnan(computed) else f"computed {_ratio(computed)}")


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}×"


def seconds(value: float) -> str:
    """Three digits that count, in seconds."""
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def remarks(measured: Sequence[Measured], probed: Sequence[Probed]) -> list[str]:
    """Say what a reader of the figures must know."""
    found = [remark for one in probed for remark in one.remarks()]
    for name, servers in cells(measured).items():
        for cell in servers:
            if cell.figures.codes:
                told = ", ".join(f"{n}× {code}" for code, n in cell.figures.codes.most_common())
                found.append(f"{name}, {cell.server}: {told}.")
            if cell.figures.unasked:
                found.append(f"{name}, {cell.server}: the row's time was over before its end.")
    found += sorted({line for one in measured for line in _warnings(one)})
    found += [line for one in measured for line in _conversations(one)]
    for scenario in SCENARIOS:
        if scenario.first_of and any(one.scenario == scenario.name for one in measured):
            found.append(
                f"{scenario.name}: first tokens are the {scenario.first_of}s', gaps the {scenario.gap_of}s'."
            )
    return found


def _conversations(one: Measured) -> list[str]:
    """Say how much of the conversations was computed more than once."""
    last = max((o.kind for o in one.outcomes if o.kind.startswith("turn ")), default="")
    whole = sum(o.prompt_tokens or 0 for o in one.outcomes if o.kind == last)
    computed = figures(one).computed
    if not last or computed is None or not all(o.good for o in one.outcomes):
        return []
    return [
        (
            f"{title(one.scenario, one.phase, one.users)}, {one.server}, round {one.round + 1}: the "
            f"conversations have {whole:,} tokens at their ends; {computed:,} were computed."
        )
    ]


def _warnings(one: Measured) -> list[str]:
    found = []
    name = title(one.scenario, one.phase, one.users)
    first = min((o for o in one.outcomes if o.good), key=lambda o: o.begin, default=None)
    known = 0.0 if first is None else (first.cached or 0) / (first.prompt_tokens or 1)
    if one.phase == "cold" and known > 0.25:
        found.append(
            f"{name}, {one.server}: it had these prompts in its cache already, so this is no cold start. "
            "Take another --seed, or restart it."
        )
    if one.seconds > 0 and one.client_cpu / one.seconds > 0.1:
        share = one.client_cpu / one.seconds
        found.append(
            f"{name}, {one.server}: asking took {share:.0%} of a core, which servers on this machine lack."
        )
    broken = next((o.message for o in one.outcomes if not o.good and o.message), "")
    if broken:
        found.append(f"{name}, {one.server}, the first error: {broken[:200].strip()}")
    return found


def document(
    plan: Plan, probed: Sequence[Probed], measured: Sequence[Measured], about: Mapping[str, object]
) -> str:
    """Return everything as JSON: each request of each round, the figures and the ratios."""
    whole = {
        **about,
        "seed": plan.seed,
        "rounds": plan.rounds,
        "tokens_per_word": plan.tokens_per_word,
        "limits": asdict(plan.limits),
        "servers": [
            {
                "label": one.peer.label,
                "model": one.peer.model,
                "left_out": one.peer.left_out,
                "tells_usage": one.tells_usage,
                "tells_cached": one.tells_cached,
            }
            for one in probed
        ],
        "remarks": remarks(measured, probed),
        "table": {
            name: [
                {"server": cell.server, **_plain(cell.figures), "ratios": _known(cell.ratios)}
                for cell in servers
            ]
            for name, servers in cells(measured).items()
        },
        "runs": [_run(one) for one in measured],
    }
    return json.dumps(whole, indent=1) + "\n"


def _run(one: Measured) -> dict[str, Any]:
    begin = min((o.begin for o in one.outcomes), default=0.0)
    return {
        "scenario": one.scenario,
        "phase": one.phase,
        "users": one.users,
        "server": one.server,
        "round": one.round + 1,
        "seconds": round(one.seconds, 4),
        "client_cpu_seconds": round(one.client_cpu, 4),
        **_plain(figures(one)),
        "outcomes": [_request(o, begin) for o in one.outcomes],
    }


def _request(one: Outcome, begin: float) -> dict[str, Any]:
    told: dict[str, Any] = {
        "kind": one.kind,
        "begin": round(one.begin - begin, 4),
        "first": round(one.first, 4),
        "total": round(one.total, 4),
        "status": one.status,
        "tokens": one.tokens,
        "prompt_tokens": one.prompt_tokens,
        "cached_tokens": one.cached,
        # In one string: a number on each line would make most of the file of line ends.
        "gaps_ms": " ".join(f"{gap * 1000:.1f}" for gap in one.gaps),
    }
    if one.code:
        told |= {"code": one.code, "message": one.message[:500], "retry_after": one.retry_after}
    if one.called:
        told["called"] = one.called
    return told


def _plain(found: Figures) -> dict[str, Any]:
    return _known({**asdict(found), "codes": dict(found.codes), "computed": found.computed})


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        key: (None if math.isnan(value) else round(value, 5)) if isinstance(value, float) else value
        for key, value in values.items()
    }
