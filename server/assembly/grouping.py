"""Who shares weights: names of the same files and sizes are one context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from server.assembly.wanted import Wanted, naming
from server.catalog.gguf import check_parts
from server.catalog.plan import Memory, read_shape
from server.settings import EngineSettings, ModelSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Group:
    """Names that share one set of weights and one context."""

    members: tuple[Wanted, ...]

    @property
    def name(self) -> str:
        """The first name."""
        return self.members[0].name

    @property
    def model(self) -> ModelSettings:
        """The weights; equal for all members."""
        return self.members[0].model

    @property
    def engine(self) -> EngineSettings:
        """The context, with the longest `n_ctx` that a member has."""
        engines = [member.engine for member in self.members]
        numbers = [engine.n_ctx for engine in engines if engine.n_ctx != "auto"]
        longest = max(numbers, default=None)
        return next((one for one in engines if one.n_ctx == longest), engines[0])

    @property
    def keep_alive(self) -> float | None:
        """The longest that a member has; None: for ever."""
        times = [member.keep_alive for member in self.members]
        return None if None in times else max(time for time in times if time is not None)


def grouped(wanted: Sequence[Wanted], memory: Memory) -> list[Group]:
    """Put together what can share weights and slots: same files, same sizes but for `n_ctx`.

    On a card, `all`, any number that counts all layers, and `auto` beside them are the same wish; so is
    `auto` for the experts beside none in system memory.
    """
    named = [_with_layers(one) if memory.has_gpu else one for one in wanted]
    named = _filled(named, memory, "n_gpu_layers", "all")
    named = _filled(named, memory, "n_cpu_moe", 0)
    groups: dict[object, list[Wanted]] = {}
    for one in named:
        groups.setdefault(_key(one, memory), []).append(one)
    made = [Group(tuple(members)) for members in groups.values()]
    _warn_of_copies(made)
    return made


def _with_layers(one: Wanted) -> Wanted:
    """Return `one` with a number that counts all layers of the model written as `all`."""
    asked = one.model.n_gpu_layers
    if not isinstance(asked, int) or asked == 0:
        return one
    with naming(one.name):
        shape = read_shape(check_parts(one.model.path))
    return _with_model(one, {"n_gpu_layers": "all"}) if asked > shape.n_layer else one


def _filled(named: Sequence[Wanted], memory: Memory, setting: str, best: object) -> list[Wanted]:
    """Write `auto` as `best`, what it tries first, beside one that names that for the same context.

    The one that names it must fit, or nothing starts; so `auto` would choose the same, with weights of
    its own. Another number stays apart: one agent's few layers must not slow down all who leave it open.
    """
    there = {_key(one, memory) for one in named if getattr(one.model, setting) == best}
    filled = []
    for one in named:
        joined = _with_model(one, {setting: best})
        is_open = getattr(one.model, setting) == "auto"
        filled.append(joined if is_open and _key(joined, memory) in there else one)
    return filled


def _with_model(one: Wanted, changes: Mapping[str, object]) -> Wanted:
    return replace(one, model=one.model.model_copy(update=changes))


def _key(one: Wanted, memory: Memory) -> object:
    agents_own = {"name", "keep_alive", "chat_template", "path"}
    layers = set() if memory.has_gpu else {"n_gpu_layers", "n_cpu_moe"}
    model = one.model.model_dump(exclude=agents_own | layers | {"draft"})
    engine = one.engine.model_dump(exclude={"n_ctx", "default_max_tokens", "stall_after"})
    draft = one.model.draft and one.model.draft.resolve()
    return repr((one.model.path.resolve(), draft, model, engine))


def _warn_of_copies(groups: Sequence[Group]) -> None:
    first: dict[object, Group] = {}
    for group in groups:
        weights = (group.model.path.resolve(), group.model.adapter)
        other = first.setdefault(weights, group)
        if other is not group:
            log.warning(
                "%s and %s load the same weights twice: they share them only with equal slots, "
                "kv_cells, kv_type, n_gpu_layers, n_cpu_moe and draft",
                other.name,
                group.name,
            )
