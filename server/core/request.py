"""What one generation asks for, after validation and tokenization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one sequence. Neutral values switch a sampler off; defaults are OpenAI's.

    Ranges are validated by the API layer; the token ids in `logit_bias` against the vocabulary.
    Names and meanings follow llama.cpp's samplers (`include/llama.h`, `llama_sampler_init_*`).
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    """-1 is off."""
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    """Tokens that penalties look back on; -1 is the whole context."""
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    """0 off, 1 or 2 the version."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None
    """None draws a fresh seed; any other value, 0 too, is used as given (32 bits)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id → value added to its logit; `-inf` forbids it."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How reasoning is told from the answer, by token ids. It comes first, if at all, between two markers."""

    start: int
    """Opens it, as the first token of all."""
    end: int
    """Closes it; the answer follows."""
    inside: bool = False
    """The prompt's end has opened it already."""
    budget: int | None = None
    """Most tokens between the markers; None: no limit of its own."""
    closing: tuple[int, ...] = ()
    """What follows the last of them in place of the model's own tokens; `end` is in it."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the answer must look like. Reasoning is free; what follows it is not."""

    grammar: Any
    """A `CompiledGrammar` of the model's own `Grammars`."""
    trigger: int | None = None
    """The token that the grammar begins with: what comes before is free. None: it holds from the first token on."""
    once: bool = False
    """With a trigger: the answer ends after the first match."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `n` choices of one API request are `n` of these."""

    request_id: str
    prompt: Sequence[int]
    """Token ids, at least one."""
    max_tokens: int
    """Most tokens to generate, at least 1; `len(prompt) + max_tokens <= n_ctx`."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it. Within reasoning they end nothing."""
    thinking: Thinking | None = None
    """None: the model does not reason, or has done so in the prompt."""
    constraint: Constraint | None = None
    """None: any text."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: no log-probabilities. k ≥ 0: of the sampled token and of the k likeliest."""
    reuse_prefix: bool = True
    """May take over cells that another request computed."""
    cache_scope: str = ""
    """Whose cells: only requests of the same scope share any, so that nobody's `cached_tokens` or
    answer times tell what somebody else asked."""
    public_tokens: int = 0
    """So many of the prompt's first tokens are the server's own words, not a client's: their cells may be shared
    with every scope in which they are public, too."""
    deadline: float | None = None
    """Monotonic time by which a slot must be found, else `QueueTimeout`."""
    rank: tuple[int, float, int] = (0, 0.0, 0)
    """The least one gets the next slot; equal ones in the order they came."""
