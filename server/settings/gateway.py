"""Settings of admission: who is let in, who waits, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from server.settings.fallback import FallbackSettings
from server.settings.quantities import Duration, Kind, Size
from server.settings.relations import Conflict, Conflicts
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


Percent = Annotated[float, BeforeValidator(whole_as_float), Field(gt=0, lt=100)]


class GpuGuardSettings(Section):
    """What happens when other programs take the card's memory; what runs is never cut."""

    mode: Literal["reserve", "used", "off"] = Field(
        "reserve", description="watch free memory beyond the plan, the share in use, or nothing"
    )
    low: Annotated[Size | None, Kind("size")] = Field(
        None, description="mode reserve: nothing new begins below it; null: half of memory.reserve"
    )
    high: Annotated[Size | None, Kind("size")] = Field(
        None, description="mode reserve: enough again; null: three quarters of memory.reserve"
    )
    used: Percent = Field(
        95.0, description="mode used: nothing new begins above so many percent in use"
    )
    used_resume: Percent = Field(
        90.0, description="mode used: so many percent are few enough again"
    )
    interval: Annotated[Duration, Field(ge=0.05)] = Field(
        1.0, description="time between two looks at the card"
    )
    hold: Duration = Field(
        10.0, description="how long new requests may wait in line before they get 503 instead"
    )
    settle: Duration = Field(
        5.0, description="how long there must be enough memory before anything begins again"
    )

    def thresholds(self, reserve: int) -> tuple[int, int]:
        """Return `low` and `high` in force, in bytes."""
        low = reserve // 2 if self.low is None else self.low
        return low, reserve * 3 // 4 if self.high is None else self.high

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.used_resume > self.used:
            message = f"must be at most used ({self.used:g}); it is {self.used_resume:g}"
            raise Conflicts([Conflict(("used_resume", "used"), message)])
        return self


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
    passing: Duration = Field(
        60.0,
        description="no request is passed by a shorter one of its key that came later than that",
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
    gpu_guard: GpuGuardSettings = Field(
        default_factory=GpuGuardSettings, description="a card that others use too"
    )
    fallback: FallbackSettings = Field(
        default_factory=FallbackSettings, description="who answers for a model that cannot"
    )
    share_prefixes: bool = Field(
        default=False,
        description="keys reuse each other's cached prompts; cached_tokens and times then tell of them",
    )
    strict: bool = Field(
        default=False,
        description="answer 400 to request fields that would have no effect, not ignore them",
    )
    reasoning_field: Literal["reasoning_content", "reasoning", "both"] = Field(
        default="reasoning_content",
        description="where answers have what the model thought: clients differ in what they read",
    )
