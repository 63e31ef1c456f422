"""Settings of admission: who is let in, who waits, and for how long."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from server.settings.quantities import Duration, Kind, Size
from server.settings.values import PositiveInt, Section, whole_as_float


class TimeoutSettings(Section):
    """How long a request may wait for what."""

    connect: Annotated[Duration, Field(gt=0)] = Field(
        120.0, description="longest wait in line for a slot; then 503"
    )
    read: Annotated[Duration, Field(gt=0)] = Field(
        300.0, description="longest silence of the engine within a request; then 504"
    )
    write: Annotated[Duration, Field(gt=0)] = Field(
        120.0, description="longest pause of a client that sends its body or reads its answer"
    )
    total: Annotated[Duration | None, Kind("duration")] = Field(
        None, description="longest time from tokenization to the last token; then 504; null: none"
    )


class RateLimitSettings(Section):
    """Limits of each key that has none of its own; of all together where there are no keys."""

    requests_per_minute: (
        Annotated[float, BeforeValidator(whole_as_float), Field(gt=0, le=1e6)] | None
    ) = Field(None, description="requests per minute; null: not limited")
    burst: PositiveInt | None = Field(
        None, description="requests that may come at once; null: a minute's"
    )
    tokens_per_minute: PositiveInt | None = Field(
        None, description="tokens per minute, prompt and output; null: not limited"
    )
    max_concurrent: PositiveInt | None = Field(
        None, description="requests at a time; null: not limited"
    )


class IdempotencySettings(Section):
    """Requests with an Idempotency-Key."""

    grace: Duration = Field(
        30.0, description="how long an answer that its client lost is worked on"
    )
    lifetime: Duration = Field(600.0, description="how long a complete answer is kept for retries")
    max_answers: Annotated[int, Field(ge=0)] = Field(
        1000, description="complete answers kept; further ones drive out the oldest"
    )
    max_size: Annotated[Size, Field(ge=0)] = Field(
        64 * 2**20, description="memory of all of them together, likewise"
    )


class GatewaySettings(Section):
    """Who is let in, and who waits."""

    max_queue: Annotated[int, Field(ge=0)] = Field(
        64, description="requests that may wait for a slot; further ones get 503"
    )
    interactive_slots: Annotated[int, Field(ge=0)] = Field(
        0, description="slots of each model that only keys of priority interactive may take"
    )
    aging: Duration = Field(
        15.0, description="wait after which a lower priority gets one start in four"
    )
    stream_hold: Duration = Field(
        5.0, description="how long a queued stream withholds its status before it opens"
    )
    rate_limit: RateLimitSettings = Field(
        default_factory=RateLimitSettings, description="what a key may ask for"
    )
    timeout: TimeoutSettings = Field(
        default_factory=TimeoutSettings, description="limits of waiting"
    )
    idempotency: IdempotencySettings = Field(
        default_factory=IdempotencySettings, description="retries by Idempotency-Key"
    )
    share_prefixes: bool = Field(
        default=False,
        description="keys reuse each other's cached prompts; cached_tokens and times then tell of them",
    )
    strict: bool = Field(
        default=False, description="answer 400 to request fields that are unknown, not ignore them"
    )
