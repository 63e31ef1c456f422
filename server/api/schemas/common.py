"""Fields that chat and legacy completions share, and how they become sampling parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from server.api.errors import field_path
from server.api.schemas.base import ApiModel
from server.api.schemas.output import OutputFields, top
from server.core.errors import InvalidRequest
from server.gateway.spec import OutputForm

MAX_STOPS = 16
MOST_BIASES = 1024
"""Each one is handed to C on the engine thread."""
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class StreamOptions(ApiModel):
    """How a stream reports."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None

    def unused(self, place: str) -> list[str]:
        """Paths of what is said without effect."""
        names = self.unknown(f"{place}.")
        return [*names, f"{place}.include_obfuscation"] if self.include_obfuscation else names


class SamplingFields(ApiModel):
    """Sampling under OpenAI's names, the rest under llama-server's. Null is as good as absent."""

    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_n_sigma: Annotated[Number, Field(ge=-1, le=1000)] | None = None
    xtc_probability: Annotated[Number, Field(ge=0, le=1)] | None = None
    xtc_threshold: Annotated[Number, Field(ge=0, le=1)] | None = None
    dynatemp_range: Annotated[Number, Field(ge=0, le=100)] | None = None
    dynatemp_exponent: Annotated[Number, Field(ge=0, le=100)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    dry_multiplier: Annotated[Number, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[Number, Field(ge=0, le=100)] | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    dry_sequence_breakers: Annotated[list[str], Field(max_length=64)] | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[Number, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[Number, Field(ge=0, le=100)] | None = None

    def sampling(self) -> dict[str, Any]:
        """Return what was said, by `SamplingParams`' names. Raises `InvalidRequest`.

        What was left out, or null, is not in it: the model's own defaults decide.
        """
        given: dict[str, Any] = {
            name: value
            for name in SamplingFields.model_fields
            if (value := getattr(self, name)) is not None
        }
        if "seed" in given:
            given["seed"] = None if given["seed"] == -1 else given["seed"] % 2**32
        if "top_k" in given:
            given["top_k"] = max(0, given["top_k"])
        if "logit_bias" in given:
            if len(given["logit_bias"]) > MOST_BIASES:
                raise InvalidRequest(
                    f"'logit_bias' may have at most {MOST_BIASES} entries.", param="logit_bias"
                )
            given["logit_bias"] = _bias(given["logit_bias"])
        if "dry_sequence_breakers" in given:
            given["dry_sequence_breakers"] = tuple(given["dry_sequence_breakers"])
        return given


class GenerationFields(SamplingFields, OutputFields):
    """What every generating request may say."""

    LABELS: ClassVar[frozenset[str]] = frozenset({"prompt_cache_key", "safety_identifier", "user"})
    """Fields of the OpenAI API that say who asks, and ask for nothing."""

    WITHOUT_EFFECT: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "metadata": (({},), "nothing is stored that it could be attached to"),
        "prediction": ((), "answers are foreseen from the prompt alone"),
        "prompt_cache_options": ((), "prefixes are kept as long as there is room"),
        "prompt_cache_retention": (("in_memory",), "prefixes are kept as long as there is room"),
        "service_tier": (("auto", "default"), "a request's class is its key's"),
        "store": ((False,), "answers are not stored"),
        "verbosity": (("medium",), "say it in the prompt"),
    }
    """Fields of the OpenAI API that this server does nothing about: values that ask for nothing, and the reason."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "audio": "this model writes text only",
        "function_call": "use 'tools' and 'tool_choice'",
        "functions": "use 'tools'",
        "guided_whitespace_pattern": "white space in JSON is fixed",
        "moderation": "this server moderates nothing",
        "samplers": "the order of samplers is fixed",
        "structured_outputs": "use 'response_format' or 'guided_json'",
        "web_search_options": "this server has no web search",
    }
    """Fields that cannot be honoured and change the answer, with the reason."""

    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    stop: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings. Raises `InvalidRequest`."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop
        if given is None:
            return ()
        if not isinstance(given, list):
            raise InvalidRequest("'stop' must be a string or a list of strings.", param="stop")
        if len(given) > MAX_STOPS:
            raise InvalidRequest(f"'stop' may have at most {MAX_STOPS} strings.", param="stop")
        for number, text in enumerate(given):
            if not isinstance(text, str) or not text:
                raise InvalidRequest(
                    "Stop strings must be non-empty strings.",
                    param=field_path(("stop", number)) if isinstance(self.stop, list) else "stop",
                )
        return tuple(given)

    def include_usage(self) -> bool:
        """Tell whether the stream ends with usage. Raises `InvalidRequest` without a stream."""
        if self.stream_options is None:
            return False
        if not self.stream:
            raise InvalidRequest(
                "'stream_options' is only allowed with 'stream': true.", param="stream_options"
            )
        return bool(self.stream_options.include_usage)

    def passed(self) -> dict[str, Any]:
        """Return the body as it was sent, for another server: what nobody here knows is in it."""
        return self.model_dump(exclude_unset=True, by_alias=True)

    def output(self) -> OutputForm | None:
        """Return what the answer must look like. Raises `InvalidRequest`, for `ignore_eos` with it, too."""
        form = super().output()
        if form is not None and self.ignore_eos:
            raise InvalidRequest(
                f"'ignore_eos' cannot be combined with {top(form.param)!r}: the answer ends where "
                "its form is complete.",
                param="ignore_eos",
            )
        return form

    def leftover(self, *, strict: bool) -> list[str]:
        """Return the fields that have no effect. Raises `InvalidRequest` for those that matter.

        With `strict`, every one of them is refused, and what only the model's template sees, too.
        """
        extra = self.__pydantic_extra__ or {}
        for name, reason in self.REFUSED.items():
            if extra.get(name) is not None:
                raise InvalidRequest(f"{name!r} is not supported: {reason}.", param=name)
        names = [name for name in self.unknown() if not self._harmless(name, extra[name])]
        names += self.unused()
        if strict and (refused := next(iter(names), None) or next(self.unchecked(), None)):
            _, reason = self.WITHOUT_EFFECT.get(refused, ((), ""))
            told = (
                f"{refused[:100]!r} has no effect: {reason}"
                if reason
                else f"Unknown field {refused[:100]!r}"
            )
            raise InvalidRequest(f"{told}; strict mode refuses it.", param=refused)
        return names

    def unused(self) -> list[str]:
        """Return the paths within fields that have no effect."""
        names = []
        if self.stream_options is not None:
            names += self.stream_options.unused("stream_options")
        if self.response_format is not None:
            names += self.response_format.unused("response_format")
        return names

    def unchecked(self) -> Iterator[str]:
        """Yield the paths of what only the model's template sees, if anybody."""
        yield from ()

    def _harmless(self, name: str, value: Any) -> bool:
        """Tell whether a field asks for nothing."""
        return name in self.LABELS or value in self.WITHOUT_EFFECT.get(name, ((), ""))[0]


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12):
            raise InvalidRequest(
                f"The keys of 'logit_bias' must be token ids, not {key[:40]!r}.",
                param="logit_bias",
            )
        bias[int(key)] = value
    return bias
