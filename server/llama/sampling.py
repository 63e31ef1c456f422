"""Sampler chains in C, one per running sequence, built from `SamplingParams`.

`_STAGES` maps every parameter to its `llama_sampler_init_*`, in llama.cpp's standard order
(`common/sampling.cpp`). A sampler whose parameters are neutral is left out: each one costs a pass
over the vocabulary. `llama_sampler_sample` accepts the token that it drew, so nothing has to be
accepted after it. Who draws from the whole vocabulary has no chain (`server.llama.drawing`).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from server.core.request import GenerationRequest, SamplingParams
from server.llama.drawing import Drawing, Workspace
from server.llama.dry import DryPrototypes, DrySettings
from server.llama.guide import Guide, Masks, make_guide
from server.llama.native import Address, Library, LogitBias

_MIN_KEEP = 1
"""Candidates that every filter leaves: with none, llama.cpp asserts and the process dies."""
_MIROSTAT_M = 100
_COLDEST = 1e-20
"""Temperatures up to this are greedy: logits divided by less overflow, and then some token is drawn
silently."""
_NATIVE_RANDOM_SEED = 0xFFFFFFFF
"""`LLAMA_DEFAULT_SEED`: llama.cpp reads this one value as "draw a seed"."""


@dataclass(frozen=True, slots=True)
class SamplerSource:
    """What chains are made from, the same for every request of a context."""

    library: Library
    vocab: Address
    n_vocab: int
    n_ctx: int
    """Cells that one sequence may use: what a look-back of -1 means."""
    eog: frozenset[int]
    suppressed: tuple[int, ...]
    """Tokens that the model file forbids (`tokenizer.ggml.suppress_tokens`)."""
    dry: DryPrototypes
    workspace: Workspace
    masks: Masks


@dataclass(frozen=True, slots=True)
class _Context:
    """One request's view of the table."""

    source: SamplerSource
    params: SamplingParams
    seed: int
    bias: Mapping[int, float]

    def look_back(self, last_n: int) -> int:
        """-1 is the whole context; llama.cpp itself would read it as off."""
        return self.source.n_ctx if last_n < 0 else min(last_n, self.source.n_ctx)

    @property
    def penalties_window(self) -> int:
        """Tokens that the penalties look back on; 0 when they are neutral."""
        p = self.params
        neutral = (
            p.repeat_penalty == 1.0 and p.presence_penalty == 0.0 and p.frequency_penalty == 0.0
        )
        return 0 if neutral else self.look_back(p.repeat_last_n)

    @property
    def dry_window(self) -> int:
        """Tokens that DRY looks back on; 0 when it is off."""
        return (
            0
            if self.params.dry_multiplier == 0.0
            else self.look_back(self.params.dry_penalty_last_n)
        )

    @property
    def draws(self) -> bool:
        """Whether a token is drawn at random; otherwise the likeliest is taken and filters change nothing."""
        return self.params.temperature > _COLDEST

    @property
    def filters(self) -> bool:
        """Whether the truncating samplers apply: mirostat replaces them."""
        return self.draws and self.params.mirostat == 0


@dataclass(frozen=True, slots=True)
class _Stage:
    """One row of the table: when a sampler is needed and how it is made."""

    name: str
    wanted: Callable[[_Context], bool]
    make: Callable[[_Context], Address]


def _logit_bias(c: _Context) -> Address:
    entries = (LogitBias * len(c.bias))(
        *(LogitBias(token, value) for token, value in c.bias.items())
    )
    return c.source.library.sampler_init_logit_bias(c.source.n_vocab, len(entries), entries)


def _penalties(c: _Context) -> Address:
    p = c.params
    return c.source.library.sampler_init_penalties(
        c.source.n_vocab,
        c.penalties_window,
        p.repeat_penalty,
        p.frequency_penalty,
        p.presence_penalty,
    )


def _dry(c: _Context) -> Address:
    p = c.params
    return c.source.dry.make(
        DrySettings(
            multiplier=p.dry_multiplier,
            base=p.dry_base,
            allowed_length=p.dry_allowed_length,
            window=c.dry_window,
            breakers=tuple(p.dry_sequence_breakers),
        )
    )


def _temperature(c: _Context) -> Address:
    p = c.params
    if p.dynatemp_range > 0.0:
        return c.source.library.sampler_init_temp_ext(
            p.temperature, p.dynatemp_range, p.dynatemp_exponent
        )
    return c.source.library.sampler_init_temp(p.temperature)


def _mirostat(c: _Context) -> Address:
    p, library = c.params, c.source.library
    if p.mirostat == 1:
        return library.sampler_init_mirostat(
            c.source.n_vocab, c.seed, p.mirostat_tau, p.mirostat_eta, _MIROSTAT_M
        )
    return library.sampler_init_mirostat_v2(c.seed, p.mirostat_tau, p.mirostat_eta)


_STAGES: tuple[_Stage, ...] = (
    _Stage("logit_bias", lambda c: bool(c.bias), _logit_bias),
    _Stage("penalties", lambda c: c.penalties_window > 0, _penalties),
    _Stage("dry", lambda c: c.dry_window > 0, _dry),
    _Stage(
        "top_n_sigma",
        lambda c: c.filters and c.params.top_n_sigma > 0.0,
        lambda c: c.source.library.sampler_init_top_n_sigma(c.params.top_n_sigma),
    ),
    _Stage(
        "top_k",
        lambda c: c.filters and 0 < c.params.top_k < c.source.n_vocab,
        lambda c: c.source.library.sampler_init_top_k(c.params.top_k),
    ),
    _Stage(
        "typical_p",
        lambda c: c.filters and c.params.typical_p < 1.0,
        lambda c: c.source.library.sampler_init_typical(c.params.typical_p, _MIN_KEEP),
    ),
    _Stage(
        "top_p",
        lambda c: c.filters and c.params.top_p < 1.0,
        lambda c: c.source.library.sampler_init_top_p(c.params.top_p, _MIN_KEEP),
    ),
    _Stage(
        "min_p",
        lambda c: c.filters and c.params.min_p > 0.0,
        lambda c: c.source.library.sampler_init_min_p(c.params.min_p, _MIN_KEEP),
    ),
    _Stage(
        "xtc",
        lambda c: c.filters and c.params.xtc_probability > 0.0,
        lambda c: c.source.library.sampler_init_xtc(
            c.params.xtc_probability, c.params.xtc_threshold, _MIN_KEEP, c.seed
        ),
    ),
    _Stage(
        "temperature",
        lambda c: c.draws and (c.params.temperature != 1.0 or c.params.dynatemp_range > 0.0),
        _temperature,
    ),
    _Stage("mirostat", lambda c: c.draws and c.params.mirostat != 0, _mirostat),
    _Stage("dist", lambda c: c.filters, lambda c: c.source.library.sampler_init_dist(c.seed)),
    _Stage("greedy", lambda c: not c.draws, lambda c: c.source.library.sampler_init_greedy()),
)


_DRAWN = frozenset({"logit_bias", "top_p", "min_p", "temperature", "dist"})
"""What `Drawing` does."""


@dataclass(slots=True)
class Sampler:
    """A chain, or what draws in its place, and what the backend must know about it. `free` it before the model."""

    chain: Address
    drawing: Drawing | None
    """None: the chain draws."""
    stages: tuple[str, ...]
    seed: int
    forbidden: frozenset[int]
    """Tokens with a bias of -inf: drawing one means that nothing was allowed."""
    logprobs: int | None
    guide: Guide | None
    """None: any token may be drawn."""
    _free: Callable[[Address], None]

    def free(self) -> None:
        """Free the chain; harmless when repeated."""
        if self.chain:
            self._free(self.chain)
            self.chain = 0


def _bias_of(source: SamplerSource, request: GenerationRequest) -> dict[int, float]:
    """Every logit change: the request's, the model's suppressed tokens, and end tokens under `ignore_eos`."""
    bias = {int(token): float(value) for token, value in request.sampling.logit_bias.items()}
    forbidden: Iterator[int] = iter(source.suppressed)
    bias.update(dict.fromkeys(forbidden, -math.inf))
    if request.ignore_eos:
        bias.update(dict.fromkeys(source.eog, -math.inf))
    for token, value in bias.items():
        # llama.cpp would use the id as an index and draw from NaN or infinite logits without a
        # word.
        if not 0 <= token < source.n_vocab or not value < math.inf:
            message = (
                f"logit_bias: token {token} with value {value} is not possible with this vocabulary"
            )
            raise ValueError(message)
    return bias


def _check_values(params: SamplingParams) -> None:
    """Raise `ValueError` for numbers that make llama.cpp draw from NaN; the API has checked ranges before."""
    for field in fields(params):
        value = getattr(params, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            message = f"{field.name} must be a finite number"
            raise ValueError(message)
    if params.repeat_penalty <= _COLDEST:
        raise ValueError("repeat_penalty must be greater than 0")


def make_sampler(source: SamplerSource, request: GenerationRequest) -> Sampler:
    """Build the chain of `request`, primed with the end of its prompt where a sampler looks back.

    Raises `ValueError` for values that the C side would abort on.
    """
    params = request.sampling
    _check_values(params)
    guide = make_guide(source.masks, request)
    seed = (secrets.randbits(32) if params.seed is None else params.seed) & 0xFFFFFFFF
    if seed == _NATIVE_RANDOM_SEED:
        seed = _NATIVE_RANDOM_SEED - 1
    context = _Context(source, params, seed, _bias_of(source, request))
    stages = [stage for stage in _STAGES if stage.wanted(context)]
    names = tuple(stage.name for stage in stages)
    chain, drawing = 0, None
    if "dist" in names and _DRAWN.issuperset(names) and not params.dynatemp_range:
        drawing = Drawing(source.workspace, params, context.bias, seed)
    else:
        chain = _chain(context, stages, request.prompt)
    forbidden = frozenset(token for token, value in context.bias.items() if value == -math.inf)
    free = source.library.sampler_free
    return Sampler(chain, drawing, names, seed, forbidden, request.logprobs, guide, free)


def _chain(context: _Context, stages: Sequence[_Stage], prompt: Sequence[int]) -> Address:
    """Make what llama.cpp draws with."""
    library = context.source.library
    chain = library.sampler_chain_init(library.sampler_chain_default_params())
    try:
        for stage in stages:
            library.sampler_chain_add(chain, stage.make(context))
        _prime(library, chain, prompt, max(context.penalties_window, context.dry_window))
    except BaseException:
        library.sampler_free(chain)
        raise
    return chain


def _prime(library: Library, chain: Address, prompt: Sequence[int], window: int) -> None:
    """Show the chain the last `window` prompt tokens; nothing without a sampler that looks back."""
    accept: Callable[[Address, Any], None] = library.sampler_accept
    for token in prompt[-window:] if window else ():
        accept(chain, token)
