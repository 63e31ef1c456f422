"""`choose`: fill the `auto` wishes with the best configuration that fits, and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from server.catalog.plan.memory import Memory
from server.catalog.plan.planning import DEFAULT_N_CTX, DEFAULT_SLOTS, Planner
from server.catalog.plan.plans import Plan
from server.catalog.plan.shape import ModelShape
from server.catalog.plan.wishes import Wishes

KV_ORDER = ("f16", "q8_0", "q4_0")
"""From the most exact to the smallest."""
CONTEXTS = (32768, 24576, 16384, 12288, 8192, 6144, 4096, 3072, 2048)
"""What `n_ctx: auto` tries, as far as the model was trained for it."""
_MOST_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Choice:
    """The best plan, or None with what would fit instead."""

    best: Plan | None
    alternatives: list[Plan] = field(default_factory=list)
    reason: str = ""


def choose(shape: ModelShape, wishes: Wishes, memory: Memory) -> Choice:
    """Fill the `auto` wishes.

    In this order: everything on the GPU; the most exact KV type; fewer slots and shorter contexts;
    for mixture models experts in system memory; fewer layers on the GPU. A wish with a value is never changed.
    A draft model is on the card where it fits beside all that is wished for there; no layer gives way to it.
    Raises `ConfigError` for wishes that contradict each other.
    """
    planner = Planner(shape, memory)
    if wishes.draft is not None and wishes.draft.on_gpu and memory.has_gpu:
        if choice := _Search(planner, wishes).whole():
            return choice
        wishes = replace(wishes, draft=replace(wishes.draft, on_gpu=False))
    return _Search(planner, wishes).run()


class _Search:
    def __init__(self, planner: Planner, wishes: Wishes) -> None:
        self.planner = planner
        self.wishes = wishes
        trained = planner.shape.n_ctx_train
        self.target = min(DEFAULT_N_CTX, trained)
        # A card is there to be filled; system memory is shared with everything else.
        longest = trained if planner.memory.has_gpu else self.target
        self.contexts = [n for n in CONTEXTS if n <= longest] or [self.target]

    def whole(self) -> Choice | None:
        """Search with the layers as wished, `auto` being all of them."""
        best = self._whole()
        return None if best is None else Choice(best, reason=self._reason(best))

    def run(self) -> Choice:
        if choice := self.whole():
            return choice
        for fewer in (self._experts_aside, self._fewer_layers):
            best = fewer()
            if best is not None:
                return Choice(best, reason=self._reason(best))
        return Choice(None, self._alternatives(), self._refusal())

    def _kv_types(self) -> tuple[str, ...]:
        if self.wishes.kv_type != "auto":
            return (self.wishes.kv_type,)
        return KV_ORDER[:1] if self.wishes.flash_attention == "off" else KV_ORDER

    def _sizes(self) -> Iterator[tuple[int, int]]:
        """Yield slots and n_ctx, from the target downwards."""
        slots, n_ctx = self.wishes.slots, self.wishes.n_ctx
        contexts = [n for n in self.contexts if n <= self.target] if n_ctx == "auto" else [n_ctx]
        for context in contexts:
            most = DEFAULT_SLOTS if slots == "auto" else slots
            for count in range(most, 0, -1) if slots == "auto" else [most]:
                yield count, context

    def _variant(self, changes: Mapping[str, object]) -> Wishes | None:
        """Return the wishes with changes; None for a context that the wished cells cannot hold."""
        wishes = replace(self.wishes, **changes)  # type: ignore[arg-type]
        if wishes.kv_cells != "auto" and wishes.n_ctx != "auto" and wishes.kv_cells < wishes.n_ctx:
            return None
        return wishes

    def _plan(self, **changes: object) -> Plan | None:
        wishes = self._variant(changes)
        return None if wishes is None else self.planner.plan(wishes)

    def _try(self, **changes: object) -> Plan | None:
        wishes = self._variant(changes)
        return None if wishes is None else self.planner.fitting(wishes)

    def _whole(self) -> Plan | None:
        first = next(self._sizes())
        for kv_type in self._kv_types():
            longer = [n for n in self.contexts if n >= first[1]]
            for n_ctx in longer if self.wishes.n_ctx == "auto" else [first[1]]:
                if plan := self._try(slots=first[0], n_ctx=n_ctx, kv_type=kv_type):
                    return plan
        for slots, n_ctx in self._sizes():
            for kv_type in self._kv_types():
                if plan := self._try(slots=slots, n_ctx=n_ctx, kv_type=kv_type):
                    return plan
        return None

    def _experts_aside(self) -> Plan | None:
        """Keep the experts of as few layers as possible on the CPU."""
        layers = self.planner.shape.n_expert_layers
        if self.wishes.n_cpu_moe != "auto" or not layers or not self.planner.memory.has_gpu:
            return None
        return self._each(
            lambda slots, n_ctx, kv_type: _least(
                1,
                self.planner.shape.n_layer,
                lambda count: self._plan(
                    slots=slots, n_ctx=n_ctx, kv_type=kv_type, n_cpu_moe=count
                ),
            )
        )

    def _fewer_layers(self) -> Plan | None:
        if self.wishes.n_gpu_layers != "auto" or not self.planner.memory.has_gpu:
            return None
        return self._each(
            lambda slots, n_ctx, kv_type: _least(
                0,
                self.planner.all_layers,
                lambda aside: self._plan(
                    slots=slots,
                    n_ctx=n_ctx,
                    kv_type=kv_type,
                    n_gpu_layers=self.planner.all_layers - aside,
                ),
            )
        )

    def _each(self, search: Callable[[int, int, str], Plan | None]) -> Plan | None:
        """Search at the target first; with an `auto` KV type q8_0, since each layer counts now."""
        types = self._kv_types()
        preferred = types[1:2] + types[2:] + types[:1] if len(types) > 1 else types
        for slots, n_ctx in self._sizes():
            for kv_type in preferred:
                if plan := search(slots, n_ctx, kv_type):
                    return plan
        return None

    def _alternatives(self) -> list[Plan]:
        """Configurations near the wishes that do fit, each giving way in one respect."""
        asked = replace(
            self.planner.resolve(self.wishes),
            # They follow the KV type and the layers.
            kv_layout=self.wishes.kv_layout,
            flash_attention=self.wishes.flash_attention,
        )
        found: list[Plan] = []
        for kv_type in dict.fromkeys((asked.kv_type, *self._smaller_kv())):
            fixed = replace(asked, kv_type=kv_type, kv_cells="auto")
            slots = most_slots(self.planner, fixed, kv_type, int(asked.n_ctx))
            contexts = [n for n in (*self.contexts, 1024, 512) if n < int(asked.n_ctx)]
            tries = [replace(fixed, slots=min(slots, int(asked.slots)))] if slots else []
            tries += [replace(fixed, n_ctx=n) for n in contexts]
            fitting = (self.planner.fitting(one) for one in tries)
            found += [plan for plan in fitting if plan is not None][: 1 + bool(slots)]
        if self.planner.memory.has_gpu:
            fewer = _Search(self.planner, replace(asked, n_gpu_layers="auto", n_cpu_moe="auto"))
            more = fewer._experts_aside() or fewer._fewer_layers()
            found += [more] if more else []
        if not found:
            small = replace(
                asked, slots=1, n_ctx=512, kv_cells="auto", kv_type=self._smaller_kv()[-1]
            )
            last = _Search(self.planner, replace(small, n_gpu_layers="auto"))._fewer_layers()  # noqa: SLF001 - same
            found += [last] if last else []
        return list(dict.fromkeys(found))

    def _smaller_kv(self) -> tuple[str, ...]:
        return KV_ORDER[:1] if self.wishes.flash_attention == "off" else KV_ORDER

    def _reason(self, plan: Plan) -> str:
        said = []
        if self.planner.memory.has_gpu:
            if plan.n_gpu_layers >= plan.n_layers:
                where = "everything on the GPU"
                if plan.n_cpu_moe:
                    where = f"all layers on the GPU but the experts of {plan.n_cpu_moe}, for which it has no room"
            else:
                where = f"{plan.n_gpu_layers} of {plan.n_layers} layers on the GPU"
                if self.wishes.n_gpu_layers == "auto":
                    where += ", as many as it has room for"
            said.append(where)
        else:
            said.append("everything in system memory, as there is no GPU")
        if self.wishes.kv_type == "auto":
            said.append(f"{plan.kv_type} KV, {self._why_kv(plan)}")
        if "auto" in (self.wishes.slots, self.wishes.n_ctx):
            said.append(f"{plan.slots} slots of {plan.n_ctx} tokens")
        if plan.n_gpu_layers == 0 and "auto" in (
            self.wishes.kv_layout,
            self.wishes.flash_attention,
        ):
            flash = "with" if plan.flash_attention else "without"
            said.append(f"{plan.kv_layout} KV layout, {flash} flash attention")
        if plan.draft is not None and plan.n_gpu_layers > 0:
            there = plan.draft.n_gpu_layers > 0
            place = (
                "on the GPU" if there else "in system memory, where it is slow: the GPU has no room"
            )
            said.append(f"the draft model {place}")
        return "; ".join(said)

    def _why_kv(self, plan: Plan) -> str:
        better = KV_ORDER[: KV_ORDER.index(plan.kv_type)]
        if not better:
            return "the most exact"
        partly = plan.n_gpu_layers < plan.n_layers or plan.n_cpu_moe > 0
        if self.planner.memory.has_gpu and partly:
            return "which leaves room for layers"
        return f"since {' and '.join(better)} would not fit"

    def _refusal(self) -> str:
        plan = self.planner.plan(self.wishes)
        flash = self.wishes.flash_attention
        smallest = self.planner.plan(
            replace(
                self.wishes,
                slots=next(self._sizes())[0],
                kv_type=self._kv_types()[-1],
                flash_attention="on" if flash == "auto" else flash,
            )
        )
        over = []
        if smallest.total_gpu > smallest.limit_gpu:
            over.append(
                f"{gib(smallest.total_gpu)} on a GPU that has {gib(plan.limit_gpu)} to give"
            )
        if smallest.limit_cpu is not None and smallest.needed_cpu > smallest.limit_cpu:
            over.append(
                f"{gib(smallest.needed_cpu)} of system memory, of which {gib(smallest.limit_cpu)} is available"
            )
        beside = "" if smallest.draft is None else " and the draft model"
        return (
            f"{smallest.slots} × {smallest.n_ctx} tokens with {smallest.kv_type} KV{beside} need "
            + " and ".join(over)
        )


def most_slots(planner: Planner, wishes: Wishes, kv_type: str, n_ctx: int) -> int:
    """Count the slots of `n_ctx` tokens that fit at once, up to 64; 0 when not even one does."""
    fixed = replace(wishes, kv_type=kv_type, n_ctx=n_ctx, kv_cells="auto")
    one = planner.fitting(replace(fixed, slots=1))
    if one is None:
        return 0
    slots = _by_kv_alone(one)
    while slots > 1 and planner.fitting(replace(fixed, slots=slots)) is None:
        slots -= 1
    return slots


def _by_kv_alone(one: Plan) -> int:
    """Bound the slots by what the KV cache alone takes, given the plan of one slot."""
    cells = (one.kv_gpu + one.kv_cpu) // one.kv_per_token if one.kv_per_token else 0
    if not cells:
        return _MOST_SLOTS
    bounds = [_MOST_SLOTS]
    kv_gpu, kv_cpu = one.all_kv
    for total, limit, kv in (
        (one.total_gpu, one.limit_gpu, kv_gpu),
        (one.needed_cpu, one.limit_cpu, kv_cpu),
    ):
        if kv and limit is not None:
            # The first slot's own cells are given back: rounding may have made them more.
            bounds.append((limit - total + kv) * cells // (kv * one.n_ctx))
    return max(min(bounds), 1)


def gib(size: int) -> str:
    """Write bytes in GiB with two decimals."""
    return f"{size / (1 << 30):.2f} GiB"


def _least(low: int, high: int, attempt: Callable[[int], Plan | None]) -> Plan | None:
    """Move aside as little as the card demands; None when that does not fit system memory either."""
    best = attempt(high)
    if best is None or best.total_gpu > best.limit_gpu:
        return None
    high -= 1
    while low <= high:
        middle = (low + high) // 2
        plan = attempt(middle)
        if plan is None:
            return None
        if plan.total_gpu <= plan.limit_gpu:
            best, high = plan, middle - 1
        else:
            low = middle + 1
    return best if best.fits else None
