"""What a generation yields: `Started`, any number of `Delta`, one `Finished` or `Failed`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.core.errors import OnegpuError


class FinishReason(StrEnum):
    """Why a generation ended without an error."""

    STOP = "stop"
    """End-of-generation token or stop string."""
    LENGTH = "length"
    """`max_tokens` generated."""
    ABORTED = "aborted"
    """The caller went away; nobody reads this one."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its natural-log probability in the model's distribution before sampling."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledLogprobs:
    """Log-probabilities of one position: the sampled token, the k likeliest in falling order."""

    token_id: int
    logprob: float
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """A slot was found. `cached_tokens` of `prompt_tokens` need not be computed again.

    Where another request is still computing them, that is what can be expected; `Usage` has what came of it.
    """

    slot: int
    prompt_tokens: int
    cached_tokens: int
    missed: str | None = None
    """Why no prefix was there to share; None: one was."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Newly generated text: whole characters, nothing that could still turn into a stop string.

    `text` may be empty while characters are held back; the tokens are told all the same.
    `logprobs` has one entry per entry of `token_ids`, or is empty when none were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[SampledLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, measured by the engine's clock."""

    queued: float
    """Submit to slot."""
    prefill: float
    """Slot to first token."""
    decode: float
    """First to last token."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The normal end."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_match: str | None = None
    """The stop string that ended it, if one did."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The end by an error, with what had been used until then."""

    error: OnegpuError
    usage: Usage


Event = Started | Delta | Finished | Failed
