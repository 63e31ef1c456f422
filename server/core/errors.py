"""Every error this server tells somebody about.

No HTTP here: `server.api.errors` maps codes to statuses.

OnegpuError
├── ConfigError                 the configuration or the command line is wrong
├── ModelFileError              the GGUF cannot be used
├── HubError (server.catalog)   the model hub cannot be reached, refuses, or lacks what was asked for
├── RequestError                the caller can mend it
│   ├── InvalidRequest          a field is wrong (`param` names it)
│   ├── ContextLengthExceeded   prompt + output do not fit `n_ctx`
│   ├── InvalidApiKey, AdminRequired, ModelNotAllowed
│   ├── TooManyFailures         no valid key, again and again; `retry_after`
│   ├── ModelNotFound
│   ├── RequestTooLarge         the body is over the limit
│   ├── IdempotencyMismatch     an idempotency key with another request than before
│   ├── RepeatedCrash           the server process died twice while it ran this request
│   ├── RateLimited             a key's own limit; `retry_after` says when it allows more
│   └── ClientStalled           the client stopped sending or reading
├── Unavailable                 the server's state; `retry_after` says when to come back
│   ├── QueueFull, QueueTimeout, DeadlineUnreachable
│   ├── GpuMemoryShort          other programs took GPU memory; nothing new begins on that card
│   ├── ModelLoading, ModelFailed, Draining
│   ├── RemoteFailed            another server, asked for its model, gave nothing that can be used
│   ├── StoreError (server.store)   the keys cannot be read
│   ├── EngineStalled           the engine has work and does not get on
│   └── EngineDead              the engine stopped for good
├── EngineTimeout               the engine was silent for too long
├── TotalTimeout                the answer took longer than its model may take
└── GenerationFailed            this one request's own work failed (sampler, grammar, decode)
"""

from __future__ import annotations


class OnegpuError(Exception):
    """Base of all errors with a message for people and a stable `code` for programs."""

    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """Keep `message` for people; `param` names the request field at fault, if one is."""
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(OnegpuError):
    """The configuration, an environment variable or a command-line flag is wrong."""

    code = "invalid_config"


class ModelFileError(OnegpuError):
    """A file cannot be served: missing, truncated, corrupt, or not a language model."""

    code = "invalid_model_file"


class RequestError(OnegpuError):
    """The caller can mend it."""

    code = "invalid_request"


class InvalidRequest(RequestError):
    """A field has a wrong type or value."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """`code` refines `invalid_request` where clients look for a special one."""
        super().__init__(message, param=param)
        if code is not None:
            self.code = code


class ContextLengthExceeded(RequestError):
    """The prompt, or the prompt and the output asked for, do not fit the context."""

    code = "context_length_exceeded"

    def __init__(
        self,
        *,
        prompt_tokens: int,
        max_tokens: int | None,
        n_ctx: int,
        param: str = "messages",
        at_least: bool = False,
    ) -> None:
        """Token counts as measured; `max_tokens` is None where the caller did not set it.

        `at_least`: the prompt is so long that it was not counted to the end.
        """
        asked = f"{'at least ' if at_least else ''}{prompt_tokens} tokens in the prompt"
        if max_tokens is not None:
            asked = (
                f"{prompt_tokens + max_tokens} tokens "
                f"({prompt_tokens} in the prompt, {max_tokens} for the output)"
            )
        super().__init__(
            f"This model's maximum context length is {n_ctx} tokens. "
            f"However, you requested {asked}. "
            "Shorten the prompt, lower max_tokens, or start the server with a larger n_ctx.",
            param=param,
        )
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.n_ctx = n_ctx


class InvalidApiKey(RequestError):
    """There is no key, or it does not count (any more)."""

    code = "invalid_api_key"


class AdminRequired(RequestError):
    """What changes the server needs an admin key."""

    code = "admin_required"


class ModelNotAllowed(RequestError):
    """The key may not use this model."""

    code = "model_not_allowed"


class TooManyFailures(RequestError):
    """Too many requests without a valid key came from one address."""

    code = "too_many_failures"

    def __init__(self, message: str, *, retry_after: float) -> None:
        """`retry_after`: seconds until the next failure would be told as such."""
        super().__init__(message)
        self.retry_after = retry_after


class ModelNotFound(RequestError):
    """No served model has this name."""

    code = "model_not_found"


class RequestTooLarge(RequestError):
    """The body is over `server.max_request_size`."""

    code = "request_too_large"


class IdempotencyMismatch(RequestError):
    """An idempotency key came with another request than before."""

    code = "idempotency_mismatch"


class RepeatedCrash(RequestError):
    """Native code ended the process each time this request ran."""

    code = "repeated_crash"


class RateLimited(RequestError):
    """A key asked for more than its limits allow now."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        """`retry_after`: seconds after which the same request passes this limit, exactly."""
        super().__init__(message)
        self.retry_after = retry_after


class ClientStalled(RequestError):
    """The client stopped sending its body or reading its answer."""

    code = "client_stalled"


class Unavailable(OnegpuError):
    """The server cannot take the request now."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """`retry_after`: seconds after which a retry has a chance, None where that is not known."""
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Unavailable):
    """The waiting line is at its bound."""

    code = "queue_full"


class QueueTimeout(Unavailable):
    """The request waited for a slot for longer than it may."""

    code = "queue_timeout"


class DeadlineUnreachable(Unavailable):
    """The answer would come after the deadline that the request names."""

    code = "deadline_unreachable"


class GpuMemoryShort(Unavailable):
    """Too little memory is left on the model's card for anything new to begin."""

    code = "gpu_memory"


class ModelLoading(Unavailable):
    """The model is not loaded yet."""

    code = "model_loading"


class ModelFailed(Unavailable):
    """The model could not be loaded; a later request tries again."""

    code = "model_failed"


class RemoteFailed(Unavailable):
    """A remote that a model is served by does not answer, or says what cannot be used."""

    code = "remote_failed"


class Draining(Unavailable):
    """The server is shutting down and admits nothing new."""

    code = "draining"


class EngineDead(Unavailable):
    """The engine stopped; only a restart of the process helps."""

    code = "engine_dead"


class EngineStalled(Unavailable):
    """The engine has work and finishes no step: it hangs, or the device does."""

    code = "engine_stalled"


class EngineTimeout(OnegpuError):
    """The engine gave nothing for longer than `gateway.timeout.read`."""

    code = "engine_timeout"


class TotalTimeout(OnegpuError):
    """The answer was not complete within the time that its model has for one."""

    code = "total_timeout"


class GenerationFailed(OnegpuError):
    """This request's own work failed; its neighbours go on."""

    code = "generation_failed"
